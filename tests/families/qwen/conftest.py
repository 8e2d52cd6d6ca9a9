"""Tiny Qwen models: built and saved once a run, loaded back as HF's own and as hosts."""

import pytest
import tiny_qwen
import torch
from transformers import AutoModelForImageTextToText

KINDS = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="session")
def tiny():
    """The builders."""
    torch.set_num_threads(1)
    return tiny_qwen


@pytest.fixture(scope="session", params=KINDS)
def kind(request):
    """Each family once."""
    return request.param


@pytest.fixture(scope="session")
def folders(tiny, tmp_path_factory):
    """Family -> folder of its saved model."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tiny.build(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def original(folders):
    """Family -> HF's own model, loaded once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = AutoModelForImageTextToText.from_pretrained(folders(kind)).eval()
        return made[kind]

    return get


@pytest.fixture(scope="session")
def hosts(folders):
    """Family -> host, loaded once."""
    from foveate.models import load_host

    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = load_host(folders(kind))
        return made[kind]

    return get

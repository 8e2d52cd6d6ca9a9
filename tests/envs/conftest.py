"""A tiny host and inputs whose accepted answer is what the uncompressed model says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from foveate.envs.inputs import Input
from foveate.plans import Choice, Portfolio

QUESTIONS = ("what is this ?", "what is the colour of this thing there ?", "left ?", "is the thing red or blue ?")
TINY = Portfolio(
    "tiny host",
    {
        "input": (Choice("blind", 0.0), Choice("downsample", 0.25)),
        "encoder": (Choice("tome", 0.5),),
        "outside": (Choice("visionzip", 0.5), Choice("visionzip", 0.25)),
        "projector": (Choice("average_pool", 0.25),),
        "prefill": (Choice("fastv", 0.5),),
        "decode": (Choice("look_m", 0.5),),
    },
    max_active_stages=2,
)


def builder():
    """The module that builds tiny models for the hosts' own tests."""
    path = Path(__file__).resolve().parents[1] / "models" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def brief(host):
    """The host with many end tokens, so that random weights come to an end."""
    host.ends = frozenset({3, *range(12, 24)})
    return host


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    import torch

    from foveate.models import load_host

    torch.set_num_threads(1)
    return brief(load_host(builder().build(tmp_path_factory.mktemp("model"), text_tower=True)))


def answered(host, count):
    """Inputs whose uncompressed answer comes to an end; it is the accepted one."""
    out, seed = [], 0
    while len(out) < count:
        image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for question in QUESTIONS:
            p = host.open([image], [question])
            said = p.decode(max_new_tokens=8)[0]
            if p.score([[said]])[0].greedy[0]:
                i = len(out)
                about = ("even" if i % 2 == 0 else "odd", f"family{seed}", "t", "test")
                out.append(Input(f"tiny/test/{seed}#{QUESTIONS.index(question)}", image, question, (said,), *about))
        seed += 1
    return out[:count]


@pytest.fixture(scope="session")
def inputs(host):
    return answered(host, 8)


@pytest.fixture(scope="session")
def portfolio():
    return TINY

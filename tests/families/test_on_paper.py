"""Hosts on paper: tiny models of every family cost from their configuration what the loaded host forecasts on a row."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import tiny_anyres
import tiny_qwen
import tiny_shuffle
from tiny_anyres import NEXT, ONEVISION
from tiny_shuffle import IDEFICS3, INTERNVL, SMOLVLM

from foveate.models import load_host
from foveate.models.families import FAMILIES
from foveate.models.on_paper import PUBLISHED, paper_host, picture_shape
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

BUILDERS = {
    NEXT: tiny_anyres,
    ONEVISION: tiny_anyres,
    "qwen2_5_vl": tiny_qwen,
    "qwen3_vl": tiny_qwen,
    INTERNVL: tiny_shuffle,
    SMOLVLM: tiny_shuffle,
    IDEFICS3: tiny_shuffle,
}
SIZES = ([(40, 40)], [(70, 30)], [(48, 90), (33, 40)])  # (width, height)
QUESTION = "what is the colour of this thing there ?"
PLANS = (
    UNCOMPRESSED,
    BLIND,
    Plan.of(outside=("visionzip", 0.5), prefill=("fastv", 0.5)),
    Plan.of(outside=("random", 0.3), decode=("look_m", 0.5)),
)


@pytest.fixture(scope="module", params=BUILDERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return BUILDERS[family].build(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def host(folder):
    return load_host(folder)


def row_of(host, family, sizes):
    pictures = [BUILDERS[family].picture(i, height, width) for i, (width, height) in enumerate(sizes)]
    return host.inputs.row(pictures, QUESTION, 0)


def words_of(host, sizes):
    return len(host.inputs.prompt(QUESTION, 0, len(sizes))[1]) - len(sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_folder_without_weights_costs_what_the_loaded_model_forecasts(family, folder, host, sizes, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    made, row = paper_host(tmp_path), row_of(host, family, sizes)
    shape = picture_shape(made, sizes, words_of(host, sizes))
    assert (made.shape, made.grid, made.signals) == (host.shape, host.grid, host.signals)
    assert shape == replace(row.shape, phrases=None) == picture_shape(host, sizes, words_of(host, sizes))
    for plan in PLANS:
        assert made.forecast(plan, shape, 3, 2) == host.forecast(plan, row.shape, 3, 2), plan.label()
    assert made.prompt_shape(9) == host.prompt_shape(9)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_no_tokenizer_is_needed(family, folder, host, sizes, tmp_path):
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, tmp_path)
    made, row = paper_host(tmp_path), row_of(host, family, sizes)
    shape = picture_shape(made, sizes, words_of(host, sizes))
    assert (shape.grids, shape.shown, shape.mixed) == (row.shape.grids, row.shape.shown, row.shape.mixed)
    if family in (SMOLVLM, IDEFICS3):  # how they spell "\n\n", and Idefics3 its markers, is the tokenizer's business
        assert abs(shape.n_text - row.shape.n_text) <= 12 * len(shape.grids)
    else:
        assert shape == replace(row.shape, phrases=None)


def test_every_family_has_published_settings():
    assert set(PUBLISHED) == set(FAMILIES)


def test_a_configuration_alone_is_laid_out_by_the_published_settings(family, folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path / "mine.json")
    made = paper_host(tmp_path / "mine.json")
    shape = picture_shape(made, [(70, 30)], 5)
    assert shape.n_visual >= 1 and shape.n_text >= 5
    assert made.forecast(UNCOMPRESSED, shape, 2).tokens["prefill"] == shape.n_visual

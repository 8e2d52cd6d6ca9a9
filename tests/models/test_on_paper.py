"""Shipped configurations have the sizes of the models that they describe; families are found by them."""

from __future__ import annotations

import pytest

from foveate.models.families import FAMILIES
from foveate.models.on_paper import StandIn, family_hosts, paper_host, picture_shape, shipped_models

BILLIONS = {
    "internvl3-8b": 7.94,
    "llava-1.5-13b": 13.35,
    "llava-1.5-7b": 7.06,
    "llava-1.6-7b": 7.06,
    "llava-onevision-7b": 8.03,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-72b": 73.41,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-8b": 8.77,
    "smolvlm2-2.2b": 2.25,
}


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_configuration_has_the_published_number_of_parameters(name):
    model = paper_host(name).model
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == BILLIONS[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_every_family_has_a_host_on_paper():
    hosts = family_hosts()
    assert sorted(", ".join(list(hosts)[1:]).split(", ")) == sorted(FAMILIES)
    assert len(hosts) == 1 + len(set(FAMILIES.values())) and "text_similarity" in hosts["reference"].signals


def test_a_large_square_fills_the_tiles_of_llava_next():
    host = paper_host("llava-1.6-7b")
    assert picture_shape(host, [(672, 672)], 1).n_visual == 2880 == host.prompt_shape(1).n_visual
    assert picture_shape(host, [(1024, 768)], 1).n_visual == 576 + 48 * 36


def test_a_stand_in_counts_words_markers_and_runs_of_line_breaks():
    words = StandIn(7)
    assert words("USER: <image>\n\n<row_1_col_2><image></img>")["input_ids"] == [0, 0, 7, 0, 0, 7, 0]
    assert StandIn(0)("a <image>")["input_ids"] == [1, 0]

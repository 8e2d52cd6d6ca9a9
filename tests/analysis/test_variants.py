"""Methods with something changed, what their scores see of an answer, and the page about both."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from foveate.analysis import variants
from foveate.analysis.answer_places import (
    SCORES,
    Asked,
    correlation,
    drawn,
    on_answer,
    scored,
    stays,
)
from foveate.analysis.bootstrap import Gain
from foveate.analysis.switches import FICOCO, RIVALS, VARIANTS, Variant, alone, registered
from foveate.analysis.variants import FINDINGS, Line, measured, page
from foveate.compressors.base import Reduction
from foveate.compressors.registry import COMPRESSORS, make
from foveate.plans.plan import Plan
from foveate.tasks.base import Turn

pytestmark = pytest.mark.fast


def test_variants_are_registered_inside_alone_and_all_differ():
    before = dict(COMPRESSORS)
    assert len({(each.stage, each.name) for each in VARIANTS}) == len(VARIANTS)
    with registered(VARIANTS):
        assert len(COMPRESSORS) == len(before) + sum(bool(each.said) for each in VARIANTS)
        share = make("encoder", "ficoco (share=0)")
        assert share.share == 0 and share.window == 2 and share.positions == "renumber"
        assert make("outside", "random (numbered anew)").positions == "renumber"
        assert Variant(*FICOCO, "share=0").plan(0.5) == Plan.of(encoder=("ficoco (share=0)", 0.5))
    assert before == COMPRESSORS and make("outside", "random").positions == "keep"


def test_slots_without_merging_are_their_anchors_and_those_without_a_place_are_gone():
    into = torch.zeros(2, 4, 1, dtype=torch.long)
    merged = Reduction(torch.tensor([[1, 3, -1], [0, -1, -1]]), into, into.float())
    found = alone(merged)
    assert found.into is None and found.anchor.tolist() == [[1, 3], [0, -1]] and found.count.tolist() == [2, 1]
    assert alone(Reduction(torch.tensor([[2, 0]]), into[:1], into[:1].float())).count is None


def test_rank_correlation_by_hand():
    answer = np.array([True, False, False, True])
    assert correlation(np.array([4.0, 1, 2, 3]), answer) == 1 and correlation(np.array([1.0, 2, 2, 1]), answer) == -1
    assert correlation(np.array([1.0, 1, 2, 2]), answer) == pytest.approx((0 - 1 + 1 + 0) / 4)
    assert correlation(answer.astype(float), np.zeros(4, bool)) is None


def test_patches_of_an_answer_are_those_of_which_a_quarter_lies_on_its_boxes():
    found = on_answer(Turn("?", ("a",), "t", at=((0, 0, 8, 8), (20, 8, 25, 16))))
    assert np.flatnonzero(found).tolist() == [0, 12 + 2]  # 4 of 8 columns of patch 2 in row 1, 1 of 8 of patch 3
    assert not on_answer(Turn("?", ("a",), "t")).any()


def test_inputs_are_those_of_the_bench():
    found = drawn(2, tasks=("scenes", "reading"))
    assert len(found) == 2 * len({each.input.regime for each in found})
    assert all(each.input.split == "test" and each.answer.shape == (144,) for each in found)


@pytest.fixture
def asked(inputs):
    """Inputs of a host with 4 x 4 patches; the answer lies on the first row."""
    return [Asked(each, np.arange(16) < 4) for each in inputs[:4]]


def test_scores_are_read_where_a_method_acts_on_all_tokens(host, asked):
    for stage, name, _, score in SCORES:
        assert -1 <= scored(host, asked, stage, name, score) <= 1
    place = lambda method, tokens: -tokens.position.float()  # noqa: E731
    assert scored(host, asked, "encoder", "ficoco", place) == 1
    assert scored(host, asked, "outside", "trim", place) == 1


def test_what_stays_of_an_answer_is_what_has_a_token_of_its_own(host, asked):
    assert stays(host, asked, Plan()) == 1
    one = Plan.of(outside=("trim", 1 / 16))  # the mean alone, which has no place
    assert stays(host, asked, one) == 0
    assert stays(host, asked, Plan.of(outside=("stride", 0.5))) == pytest.approx(0.5)


def test_variants_run_and_are_paired_with_both_kinds_of_random(host, asked):
    some = [each for each in VARIANTS if each.method in ("trim", "chat_univi", "ficoco")]
    found = measured(host, asked, [0.5], some)
    assert [line.variant for line in found] == [*RIVALS, *some]
    assert found[0].gain.value == found[1].anew.value == 0
    for line in found:
        assert line.gain.value == pytest.approx(line.accuracy - found[0].accuracy)
        assert line.anew.value == pytest.approx(line.accuracy - found[1].accuracy)


def test_the_page_has_a_number_for_every_name_in_its_findings():
    gain = Gain(-0.25, -0.5, 0.0, 0.9, 10)
    lines = [Line(each, keep, 0.125, 0.5, gain, gain) for keep in (0.75, 0.5) for each in VARIANTS]
    said = page(lines, [0.25 * (-1) ** i for i in range(len(SCORES))], ["made by hand"])
    assert "?" not in said.split("## What scores see")[0] and "{" not in said
    assert "## Findings, keep 0.5" in said and said.count("| encoder:ficoco (share=0) | 0.12 | 50.0 |") == 2
    assert "| -25.0 [-50.0, +0.0] |" in said and "| encoder:ficoco | attention received" in said
    assert len(re.findall(r"^\* \*\*", said, re.M)) == len(FINDINGS)


def test_the_command_writes_its_page(host, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(variants, "load_host", lambda name: host)
    monkeypatch.setattr(variants, "drawn", lambda n, seed: asked)
    monkeypatch.setattr(variants, "VARIANTS", VARIANTS[:3])
    monkeypatch.setattr(variants, "measured", lambda *given, **named: measured(*given, VARIANTS[:3], **named))
    assert variants.main(["--n", "1", "--keeps", "0.5", "--out", str(tmp_path / "deep" / "page.md")]) == 0
    said = (tmp_path / "deep" / "page.md").read_text()
    assert said.startswith("# Why") and "--keeps 0.5" in said and "outside:random (numbered anew)" in said

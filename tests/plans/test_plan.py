"""Plans as values: counts, choices, labels, and the way to JSON and back."""

import json
import pickle

import numpy as np
import pytest

from foveate.plans.plan import BLIND, NONE, STAGES, UNCOMPRESSED, Choice, Plan, keep_count

pytestmark = pytest.mark.fast

TWO = Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))


@pytest.mark.parametrize(
    ("n", "keep", "count"),
    [(144, 0.5, 72), (144, 0.11, 16), (144, 0.06, 9), (10, 1 - 0.9, 1), (576, 0.1, 58), (1, 0.01, 1), (3, 1.0, 3)],
)
def test_keep_count_rounds_and_never_gives_zero(n, keep, count):
    assert keep_count(n, keep) == count


def test_keep_count_sends_an_exact_half_to_the_even_number():
    assert (keep_count(10, 0.25), keep_count(14, 0.25)) == (2, 4)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_keep_count_names_a_ratio_outside_its_range(keep):
    with pytest.raises(ValueError, match=rf"keep_ratio = {keep} is outside \(0, 1\]"):
        keep_count(4, keep)


def test_keep_count_refuses_an_empty_sequence():
    with pytest.raises(ValueError, match="n = 0 tokens is below 1"):
        keep_count(0, 0.5)


def test_keep_one_is_none_whichever_method_was_named():
    assert Choice("fastv", 1.0) == Choice("fastv", 1) == NONE
    assert Plan.of(prefill=("fastv", 1.0)) == UNCOMPRESSED


@pytest.mark.parametrize(
    ("method", "keep", "message"),
    [
        ("fastv", 0.0, r"fastv: keep = 0.0 is outside \(0, 1\]"),
        ("fastv", 1.5, r"fastv: keep = 1.5 is outside"),
        ("fastv", "0.5", r"fastv: keep = '0.5' is not a number"),
        ("fastv", True, r"keep = True is not a number"),
        ("fastv", float("nan"), r"keep = nan is not a number"),
        ("none", 0.5, r"none: keep = 0.5 must be 1"),
        ("blind", 0.5, r"blind: keep = 0.5 must be 0"),
        ("blind", 1.0, r"blind: keep = 1.0 must be 0"),
        ("", 0.5, r"method = '' is not a name"),
    ],
)
def test_a_choice_names_the_value_that_does_not_fit(method, keep, message):
    with pytest.raises(ValueError, match=message):
        Choice(method, keep)


def test_a_choice_takes_numpy_numbers_and_stores_plain_ones():
    assert type(Choice("fastv", np.float64(0.5)).keep) is float


def test_a_plan_gives_its_choices_by_stage_and_lists_what_is_active():
    assert TWO["outside"] == Choice("visionzip", 0.25)
    assert TWO["decode"] == NONE
    assert TWO.active == (("outside", Choice("visionzip", 0.25)), ("prefill", Choice("fastv", 0.5)))


def test_replace_changes_one_stage_and_leaves_the_plan_alone():
    changed = TWO.replace("outside", NONE)
    assert changed == Plan.of(prefill=("fastv", 0.5))
    assert TWO["outside"] == Choice("visionzip", 0.25)


def test_labels_are_short_text_in_stage_order():
    assert TWO.label() == "outside:visionzip@0.25 + prefill:fastv@0.5"
    assert (UNCOMPRESSED.label(), BLIND.label()) == ("none", "blind")


@pytest.mark.parametrize("plan", [TWO, UNCOMPRESSED, BLIND, Plan.of(encoder=("tome", 1 / 3))])
def test_a_plan_survives_json_and_pickle_and_keeps_its_hash(plan):
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and hash(again) == hash(plan) and len({again, plan}) == 1
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_json_form_holds_active_stages_only():
    assert TWO.to_dict() == {
        "outside": {"method": "visionzip", "keep": 0.25},
        "prefill": {"method": "fastv", "keep": 0.5},
    }
    assert UNCOMPRESSED.to_dict() == {}


def test_only_the_blind_plan_is_blind():
    assert BLIND.is_blind and not UNCOMPRESSED.is_blind and not TWO.is_blind


def test_blind_stands_at_input_and_alone():
    with pytest.raises(ValueError, match="outside: blind is a choice at input only"):
        Plan.of(outside=("blind", 0.0))
    with pytest.raises(ValueError, match="prefill: fastv has no visual token to act on in a blind plan"):
        BLIND.replace("prefill", Choice("fastv", 0.5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"outsid": {"method": "tome", "keep": 0.5}}, "unknown stage 'outsid'; near: outside"),
        ({"outside": {"method": "tome"}}, "outside: a choice is"),
        ({"outside": {"method": "tome", "keep": 2}}, "outside: tome: keep = 2.0 is outside"),
        ({"outside": ["tome", 0.5]}, "outside: a choice is"),
        (["outside"], "a plan is a mapping"),
    ],
)
def test_a_bad_json_form_says_where_and_what(data, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(data)


def test_a_plan_has_one_choice_for_each_stage():
    with pytest.raises(ValueError, match="a plan is 6 choices"):
        Plan((NONE,))
    assert len(UNCOMPRESSED.choices) == len(STAGES) == 6

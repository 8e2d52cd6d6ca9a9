from types import SimpleNamespace

import pytest

from foveate.envs.quality import Outcome, check_answers, outcome_of, quality_of

pytestmark = pytest.mark.fast


def test_the_best_accepted_answer_counts_and_y0_stands_behind_them():
    score = SimpleNamespace(logprob=[-2.0, -0.5, -0.1], greedy=[False, False, True])
    outcome = outcome_of(score, 2)
    assert outcome == Outcome(False, pytest.approx(0.60653066), pytest.approx(0.90483742))
    assert outcome_of(score, 3).correct and outcome_of(score, 3).own is None
    assert outcome_of(SimpleNamespace(logprob=[-1.0], greedy=[True]), 0) == Outcome(
        False, 0.0, pytest.approx(0.36787944)
    )


def test_rounding_never_gives_a_probability_above_one():
    assert outcome_of(SimpleNamespace(logprob=[1e-6], greedy=[True]), 1).prob == 1.0


def test_the_three_modes():
    outcome = Outcome(True, 0.6, 0.8)
    assert quality_of(outcome, "exact", 0.5) == 1.0
    assert quality_of(outcome, "graded", 0.5) == pytest.approx(0.8)
    assert quality_of(outcome, "label_free", reference=0.7) == 0.7
    assert quality_of(outcome, "label_free", reference=0.9) == 0.8
    with pytest.raises(ValueError, match="label_free needs the probability"):
        quality_of(Outcome(True, 0.6), "label_free", reference=0.7)
    with pytest.raises(ValueError, match="unknown mode 'best'"):
        quality_of(outcome, "best")


def test_answers_are_asked_for_where_they_are_needed():
    check_answers("x", ["red"], "exact")
    check_answers("x", [], "label_free")
    with pytest.raises(ValueError, match="x: has no accepted answer"):
        check_answers("x", [], "graded")

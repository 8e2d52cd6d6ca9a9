"""Quality of an answer: what the reward pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

MODES = ("exact", "graded", "label_free")
Number = TypeVar("Number", float, np.ndarray)


class Scored(Protocol):
    """What a host's `score` says of one row; see `foveate.models.host.Score`."""

    logprob: list[float]
    greedy: list[bool]


@dataclass(frozen=True)
class Outcome:
    """One input answered under one plan.

    Attributes:
        correct: greedy decoding gives an accepted answer.
        prob: probability of the best accepted answer; 0 where none is known.
        own: probability of the uncompressed model's own answer y0; None where it was not asked for.
    """

    correct: bool
    prob: float
    own: float | None = None


def outcome_of(score: Scored, accepted: int) -> Outcome:
    """The outcome of a row: the first `accepted` scored answers are the accepted ones, y0 is behind them if scored."""
    prob = [math.exp(min(each, 0.0)) for each in score.logprob]
    right = any(score.greedy[:accepted])
    return Outcome(right, max(prob[:accepted], default=0.0), prob[accepted] if len(prob) > accepted else None)


def check_mode(mode: str, b: float) -> None:
    """Raises: ValueError on an unknown mode, or b outside [0, 1]."""
    if mode not in MODES:
        raise ValueError(f"quality: unknown mode {mode!r}; known: {', '.join(MODES)}")
    if not 0 <= b <= 1:
        raise ValueError(f"quality: b = {b} is outside [0, 1]")


def graded(correct: Number, prob: Number, b: float) -> Number:
    """(1 - b) * exact match + b * P(answer), for numbers and arrays."""
    return (1 - b) * correct + b * prob


def quality_of(outcome: Outcome, mode: str, b: float = 0.0, reference: float | None = None) -> float:
    """Quality in [0, 1].

    Args:
        outcome: of the plan.
        mode: "exact"; "graded", see `graded`; or "label_free": min(p_plan(y0), p_full(y0)), so that an unsure model
            forces no spending.
        b: share of the graded part.
        reference: p_full(y0), for "label_free".
    Raises:
        ValueError: see `check_mode`; or label-free quality without y0's probabilities.
    """
    check_mode(mode, b)
    if mode != "label_free":
        return graded(float(outcome.correct), outcome.prob, b if mode == "graded" else 0.0)
    if outcome.own is None or reference is None:
        raise ValueError("quality: label_free needs the probability of the uncompressed answer under both plans")
    return min(outcome.own, reference)


def check_answers(name: str, answers: Sequence[str], mode: str) -> None:
    """Raises: ValueError where an input without accepted answers is to be judged by them."""
    if not answers and mode != "label_free":
        raise ValueError(f"{name}: has no accepted answer; quality mode {mode!r} needs one, label_free does not")

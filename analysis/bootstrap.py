"""Paired bootstrap over scene families: is the gain over a rival more than the luck of the test inputs?

A resample draws families with replacement and keeps all their inputs. Policy and rival are measured on the same
resample, and the hull of the fixed plans is computed anew in each: its plans get to be chosen on the resample too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.policies.evaluate import Outcome
from foveate.policies.hull import hull_line, line
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies with its 95 % interval.

    Attributes:
        value: on the test inputs as they are.
        low, high: 2.5 and 97.5 % quantiles over the resamples.
        wrong: share of the resamples in which it is not above 0.
        resamples: their number.
    """

    value: float
    low: float
    high: float
    wrong: float
    resamples: int

    def __str__(self) -> str:
        return f"{100 * self.value:+.2f} points [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def gain_over_hull(outcome: Outcome, table: Table, resamples: int = 2000, seed: int = 0) -> Gain:
    """Policy accuracy - accuracy of the hull of the table's fixed plans at the policy's own cost."""
    return _gain(outcome, table.share, table.correct, table, resamples, seed, hull=True)


def gain_over_line(
    outcome: Outcome, rival: Sequence[Outcome], table: Table, resamples: int = 2000, seed: int = 0
) -> Gain:
    """Policy accuracy - accuracy of a rival's line (one outcome per lambda) at the policy's own cost.

    Where the rival's line does not reach down to the policy's cost, its cheapest point counts, in the rival's favour.
    """
    share = np.stack([o.share for o in rival], axis=1)
    correct = np.stack([o.correct for o in rival], axis=1)
    return _gain(outcome, share, correct, table, resamples, seed, hull=False)


def mean_difference(values: np.ndarray, table: Table, resamples: int = 2000, seed: int = 0) -> Gain:
    """The mean of a paired difference per input."""
    sums, sizes = _by_family(table, values[:, None]), _by_family(table, np.ones((table.n, 1)))
    counts = _counts(len(sums), resamples, seed)
    drawn = (counts @ sums)[:, 0] / (counts @ sizes)[:, 0]
    return _summary(float(values.mean()), drawn)


def _gain(
    outcome: Outcome, share: np.ndarray, correct: np.ndarray, table: Table, resamples: int, seed: int, hull: bool
) -> Gain:
    sizes = _by_family(table, np.ones((table.n, 1)))
    own = _by_family(table, np.column_stack([outcome.share, outcome.correct]))
    costs, accuracies = _by_family(table, share), _by_family(table, correct)
    counts = np.concatenate([np.ones((1, len(sizes))), _counts(len(sizes), resamples, seed)])
    n = counts @ sizes
    own, costs, accuracies = counts @ own / n, counts @ costs / n, counts @ accuracies / n
    make = hull_line if hull else line
    values = np.array([a - make(c, acc).at(cost) for (cost, a), c, acc in zip(own, costs, accuracies, strict=True)])
    return _summary(float(values[0]), values[1:])


def _by_family(table: Table, values: np.ndarray) -> np.ndarray:
    """(F, K) sums of an (N, K) array over the inputs of each family."""
    index = table.family_index()
    sums = np.zeros((index.max(initial=-1) + 1, values.shape[1]))
    np.add.at(sums, index, values.astype(np.float64))
    return sums


def _counts(families: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, families) how often each family is drawn. Raises: ValueError below 2 families or 1 resample."""
    if families < 2 or resamples < 1:
        raise ValueError(f"bootstrap: {families} scene families and {resamples} resamples; needs 2 and 1 at least")
    even = np.full(families, 1 / families)
    return np.random.default_rng(seed).multinomial(families, even, size=resamples).astype(np.float64)


def _summary(value: float, drawn: np.ndarray) -> Gain:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Gain(value, float(low), float(high), float((drawn <= 0).mean()), len(drawn))

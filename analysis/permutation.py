"""The permutation test: does it matter that a plan was chosen for *this* input?

Each input gets the plan that was chosen for another input of the same regime at the same lambda. A policy that only
reads the kind of task, or that has collapsed onto one plan, loses nothing by it; what is lost is the value of adapting.
No permutation is drawn: the mean over all other inputs of the regime is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.analysis.bootstrap import Gain, mean_difference
from foveate.policies.evaluate import Outcome
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class Permuted:
    """What a policy's plans give on other inputs.

    Attributes:
        outcome: expected correctness and cost share per input, with another input's plan (`plan` is the own one).
        drop: accuracy lost by it, with its 95 % interval.
        reward_drop: loss of accuracy - lambda * cost: the accuracy's loss alone misses plans that were only cheaper.
    """

    outcome: Outcome
    drop: Gain
    reward_drop: Gain


def permute(outcome: Outcome, table: Table, resamples: int = 2000, seed: int = 0) -> Permuted:
    """The permutation test of one outcome. An input that is alone in its regime keeps its plan."""
    correct, share = outcome.correct.copy(), outcome.share.copy()
    own_share = table.share[np.arange(table.n), outcome.plan]
    for regime in sorted(set(table.regimes.tolist())):
        rows = np.flatnonzero(table.regimes == regime)
        if len(rows) < 2:
            continue
        counts = np.bincount(outcome.plan[rows], minlength=table.p).astype(np.float64)
        others = len(rows) - 1
        correct[rows] = (table.correct[rows] @ counts - outcome.correct[rows]) / others
        # deciding still costs what it cost for this input
        share[rows] += (table.share[rows] @ counts - own_share[rows]) / others - own_share[rows]
    permuted = Outcome(f"{outcome.name}, permuted", outcome.lam, outcome.plan, correct, share)
    lost = outcome.correct - correct
    reward = lost - outcome.lam * (outcome.share - share)
    drops = (mean_difference(values, table, resamples, seed) for values in (lost, reward))
    return Permuted(permuted, *drops)

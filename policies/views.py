"""What a policy sees on a replay table at each stage, as long as it has touched nothing yet.

Features are recorded on the uncompressed path, so the table knows them exactly up to the stage where a plan first
acts, and no further: a chooser that acts commits to the whole plan there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from foveate.controller import Layout
from foveate.controller.observation import GROUPS, HEAD, LAMBDA_LIMITS, MAX_SHARE
from foveate.envs.masks import STOP_GROUP, features_total
from foveate.plans.plan import STAGES, Plan
from foveate.rollouts.table import Table


def stops(plans: Sequence[Plan]) -> dict[str, tuple[str, ...]]:
    """The stages that are asked about, in order, with the feature groups that are known there.

    A stage is asked where some plan first acts; a stop's token features are computed only where it is asked.
    """
    acting = {acts_at(plan) for plan in plans}
    known, out = ["pixels", "question"], {}
    for i, stage in enumerate(STAGES):
        if i in acting:
            known += [STOP_GROUP[stage]] if stage in STOP_GROUP else []
            out[stage] = tuple(known)
    return out


def acts_at(plan: Plan) -> int:
    """Index of the first stage at which a plan does something; the number of stages where it does nothing."""
    return STAGES.index(plan.active[0][0]) if plan.active else len(STAGES)


def looked_cost(table: Table, groups: Collection[str]) -> float:
    """FLOPs of computing these feature groups for one input."""
    return float(features_total(groups, table.group_cost))


def vectors(table: Table, layout: Layout, groups: Collection[str]) -> np.ndarray:
    """(N, D) float32 observations with these groups revealed and an empty head."""
    out = np.zeros((table.n, layout.size), np.float32)
    for group in GROUPS:
        if group in groups and group in table.groups:
            start, values = layout.slices[group].start, table.groups[group]
            out[:, start] = 1.0
            out[:, start + 1 : start + 1 + values.shape[1]] = values  # a table of pictures has no time features
    return out


def spent_at(table: Table, stage: str) -> np.ndarray:
    """(N,) share of the uncompressed FLOPs spent when a stage is due and nothing was done before, features included."""
    reach = np.zeros(table.n) if table.reach is None else table.reach[:, STAGES.index(stage)]
    return (reach + looked_cost(table, stops(table.plans)[stage])) / table.full


def with_head(out: np.ndarray, stage: str, lam: float | np.ndarray, spent: np.ndarray) -> np.ndarray:
    """Writes stage, lambda and spent share into observations made by `vectors`, without a budget; returns them."""
    out[:, : len(HEAD)] = 0.0
    out[:, STAGES.index(stage)] = 1.0
    head = {
        "log_lambda": np.log10(np.clip(lam, *LAMBDA_LIMITS)) / 2,
        "budget_left": MAX_SHARE,
        "spent": np.clip(spent, 0, MAX_SHARE),
        "tokens_left": 1.0,
    }
    for name, value in head.items():
        out[:, HEAD.index(name)] = value
    return out

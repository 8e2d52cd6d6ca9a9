"""What a policy sees on a replay table at each stage, as long as it has touched nothing yet.

Features are recorded on the uncompressed path, so the table knows them exactly up to the stage where a plan first
acts, and no further: a chooser that acts commits to the whole plan there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from foveate.controller import Layout
from foveate.controller.observation import GROUPS, HEAD, log_lambda
from foveate.plans.plan import STAGES, Plan
from foveate.rollouts.table import Table

SEEN: dict[str, tuple[str, ...]] = {
    "input": ("pixels", "question"),
    "encoder": ("pixels", "question", "block1"),
    "outside": ("pixels", "question", "block1", "encoder"),
    "projector": ("pixels", "question", "block1", "encoder"),
    "prefill": ("pixels", "question", "block1", "encoder", "layer1"),
    "decode": ("pixels", "question", "block1", "encoder", "layer1"),
}
"""Stage -> feature groups that are known when it is decided."""


def acts_at(plan: Plan) -> int:
    """Index of the first stage at which a plan does something; the number of stages where it does nothing."""
    return STAGES.index(plan.active[0][0]) if plan.active else len(STAGES)


def looked_cost(table: Table, groups: Iterable[str]) -> float:
    """FLOPs of computing these feature groups for one input."""
    return float(sum(table.group_cost.get(group, 0.0) for group in groups))


def vectors(table: Table, layout: Layout, groups: Collection[str]) -> np.ndarray:
    """(N, D) float32 observations with these groups revealed and an empty head, apart from the number of turns."""
    out = np.zeros((table.n, layout.size), np.float32)
    for group in GROUPS:
        if group in groups and group in table.groups:
            place = layout.slices[group]
            out[:, place.start] = 1.0
            out[:, place.start + 1 : place.stop] = table.groups[group]
    return out


def with_head(out: np.ndarray, stage: str, lam: float | np.ndarray, spent: float | np.ndarray = 0.0) -> np.ndarray:
    """Writes stage, lambda and spent share into observations made by `vectors`, without a budget; returns them."""
    lams = np.broadcast_to(np.asarray(lam, np.float64), len(out))
    out[:, : len(STAGES)] = 0.0
    out[:, STAGES.index(stage)] = 1.0
    levels, places = np.unique(lams, return_inverse=True)
    out[:, HEAD.index("log_lambda")] = np.array([log_lambda(float(level)) for level in levels])[places]
    out[:, HEAD.index("has_budget")] = 0.0
    out[:, HEAD.index("budget_left")] = 2.0
    out[:, HEAD.index("spent")] = spent
    out[:, HEAD.index("tokens_left")] = 1.0
    out[:, HEAD.index("turns")] = 0.0
    return out

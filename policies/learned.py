"""A stage-by-stage network on a replay table: what the exported controller would do, for all inputs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.controller import Layout, Network, Normalisation
from foveate.plans.plan import Plan
from foveate.plans.portfolio import ActionTable
from foveate.policies.evaluate import Chosen
from foveate.policies.regression import network_flops
from foveate.policies.views import looked_cost, spent_at, stops, vectors, with_head
from foveate.rollouts.table import Table


@dataclass
class StagePolicy:
    """Arg-max decisions of a "policy" network without a budget; features and the network's own FLOPs are charged.

    Args:
        network: its weights.
        normalisation: of the observation.
        layout: of the observation.
        actions: what rows and levels mean.
        name: for reports.
    """

    network: Network
    normalisation: Normalisation
    layout: Layout
    actions: ActionTable
    name: str = "policy"

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """One plan per input and lambda."""
        seen_at = stops(table.plans)
        looks = [(stage, groups, columns_at(table, self.actions, stage)) for stage, groups in seen_at.items()]
        seen = {groups: vectors(table, self.layout, groups) for _, groups, _ in looks}
        return [self._walk(table, lam, looks, seen) for lam in lams]

    def _walk(
        self,
        table: Table,
        lam: float,
        looks: list[tuple[str, tuple[str, ...], np.ndarray]],
        seen: dict[tuple[str, ...], np.ndarray],
    ) -> Chosen:
        plan, looked = np.zeros(table.n, np.int64), np.zeros(table.n)
        undecided, paid = np.arange(table.n), 0.0
        flops = network_flops(self.network)
        for stage, groups, columns in looks:
            total = looked_cost(table, groups)
            looked[undecided] += total - paid + flops
            paid = total
            x = with_head(seen[groups][undecided], stage, lam, spent_at(table, stage)[undecided])
            column = columns[best_actions(*self.network(self.normalisation(x)), columns >= 0)]
            plan[undecided] = column
            undecided = undecided[column == 0]
        return Chosen(plan, looked)


def columns_at(table: Table, actions: ActionTable, stage: str) -> np.ndarray:
    """(M, R) int64 column of each action's plan where nothing was done before; 0 for `none`, -1 where there is none."""
    out = np.full(actions.shape, -1, np.int64)
    for m, r, choice in actions.offers(stage):
        out[m, r] = table.column.get(Plan.of(**{stage: choice}), -1)
    return out


def best_actions(method: np.ndarray, ratio: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and levels (N,) of the best legal actions: `controller.network.pick` for many observations, one mask."""
    m = np.where(mask.any(axis=1), method, -np.inf).argmax(axis=1)
    r = np.where(mask[m], ratio[np.arange(len(m)), m], -np.inf).argmax(axis=1)
    return m, r

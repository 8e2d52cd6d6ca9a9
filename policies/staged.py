"""From predicted quality to decisions: look at a stop, act there or go on, never with features not yet seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.plans.plan import STAGES
from foveate.policies.evaluate import Chosen
from foveate.policies.views import acts_at, looked_cost, stops
from foveate.rollouts.table import Table


class Predictor(Protocol):
    """Predicts P(correct) per plan."""

    name: str
    cost: np.ndarray
    flops: int

    def predict(self, table: Table, groups: Sequence[str]) -> np.ndarray:
        """(N, P) probability of a right answer with these groups seen."""
        ...


@dataclass
class Staged:
    """Takes argmax(quality - lambda * cost) over the plans that can still be followed.

    At each stop: if the best plan acts at this stage (or at one before the next stop), it is taken whole; if it acts
    later, or nowhere, nothing is done here and the next stop looks again with more features. With one stop it decides
    everything there; with all six it is a cascade. What is looked at, and the predictor's own FLOPs at each stop, are
    charged.

    Args:
        predictor: of quality; its `cost` is the forecast.
        at: stages at which it looks; of these, those count at which some plan of the table first acts.
        name: for reports.
        reads: feature groups that the predictor reads; only they are charged.

    Raises:
        ValueError: no stage, or an unknown one; in `choose`, none of them is a stop of the table.
    """

    predictor: Predictor
    at: Sequence[str] = STAGES
    name: str = ""
    reads: Sequence[str] = ("pixels", "question", "block1", "encoder", "layer1")

    def __post_init__(self) -> None:
        self.name = self.name or self.predictor.name
        if not self.at or not set(self.at) <= set(STAGES):
            raise ValueError(f"at: {list(self.at)} must name some of {', '.join(STAGES)}")

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """One plan per input and lambda."""
        seen = stops(table.plans)
        looks = [(stage, tuple(g for g in seen[stage] if g in self.reads)) for stage in seen if stage in self.at]
        if not looks:
            raise ValueError(f"{self.name}: no plan of the table first acts at {', '.join(self.at)}")
        acts = np.array([acts_at(plan) for plan in table.plans])
        predicted = {groups: self.predictor.predict(table, groups) for groups in dict.fromkeys(g for _, g in looks)}
        return [self._walk(table, lam, looks, acts, predicted) for lam in lams]

    def _walk(
        self,
        table: Table,
        lam: float,
        looks: list[tuple[str, tuple[str, ...]]],
        acts: np.ndarray,
        predicted: dict[tuple[str, ...], np.ndarray],
    ) -> Chosen:
        plan, looked = np.zeros(table.n, np.int64), np.zeros(table.n)
        undecided, paid = np.ones(table.n, bool), 0.0
        places = [STAGES.index(stage) for stage, _ in looks] + [len(STAGES) + 1]
        for (_, groups), place, following in zip(looks, places, places[1:], strict=False):
            total = looked_cost(table, groups)
            looked[undecided] += total - paid + self.predictor.flops
            paid = total
            legal = acts >= place  # the uncompressed plan, which acts nowhere, stays open throughout
            best = np.where(legal, predicted[groups] - lam * self.predictor.cost, -np.inf).argmax(axis=1)
            taken = undecided & (acts[best] < following)
            plan[taken] = best[taken]
            undecided &= ~taken
        return Chosen(plan, looked)

"""From predicted quality to decisions: look at a stop, act there or go on, never with features not yet seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.plans.plan import STAGES
from foveate.policies.evaluate import Chosen
from foveate.policies.views import SEEN, acts_at, looked_cost
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
        stops: stages at which it looks, in stage order.
        name: for reports.
        reads: feature groups that the predictor reads; only they are charged.

    Raises:
        ValueError: no stop, or an unknown one.
    """

    predictor: Predictor
    stops: Sequence[str] = STAGES
    name: str = ""
    reads: Sequence[str] = ("pixels", "question", "block1", "encoder", "layer1")

    def __post_init__(self) -> None:
        self.name = self.name or self.predictor.name
        unknown = [stop for stop in self.stops if stop not in STAGES]
        if unknown or not self.stops:
            raise ValueError(f"stops: {list(self.stops)} must name some of {', '.join(STAGES)}")

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """One plan per input and lambda."""
        places = [STAGES.index(stop) for stop in self.stops]
        acts = np.array([acts_at(plan) for plan in table.plans])
        seen: dict[tuple[str, ...], np.ndarray] = {}
        for stop in self.stops:
            groups = tuple(group for group in SEEN[stop] if group in self.reads)
            if groups not in seen:
                seen[groups] = self.predictor.predict(table, groups)
        return [self._walk(table, lam, places, acts, seen) for lam in lams]

    def _walk(
        self, table: Table, lam: float, places: list[int], acts: np.ndarray, seen: dict[tuple[str, ...], np.ndarray]
    ) -> Chosen:
        plan, looked = np.zeros(table.n, np.int64), np.zeros(table.n)
        open_ = np.ones(table.n, bool)
        paid: set[str] = set()
        for i, place in enumerate(places):
            groups = tuple(group for group in SEEN[STAGES[place]] if group in self.reads)
            looked[open_] += looked_cost(table, set(groups) - paid) + self.predictor.flops
            paid |= set(groups)
            legal = acts >= place  # the uncompressed plan, which acts nowhere, stays open throughout
            worth = np.where(legal, seen[groups] - lam * self.predictor.cost, -np.inf)
            best = worth.argmax(axis=1)
            next_place = places[i + 1] if i + 1 < len(places) else len(STAGES) + 1
            taken = open_ & (acts[best] < next_place)
            plan[taken] = best[taken]
            open_ &= ~taken
        return Chosen(plan, looked)

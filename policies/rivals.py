"""What a learned policy is measured against. Choices are made on a training table; only the oracle has hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.policies.evaluate import Chosen
from foveate.policies.hull import Line, hull_line
from foveate.rollouts.table import Table


def fixed_points(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(P,) mean cost share and (P,) mean accuracy of every fixed plan."""
    return table.share.mean(axis=0), table.correct.mean(axis=0)


def fixed_hull(table: Table) -> Line:
    """The upper convex hull of a table's fixed plans; `index` holds their columns."""
    return hull_line(*fixed_points(table))


@dataclass
class Fixed:
    """One plan for every input.

    Args:
        plan: its column.
        name: for reports.
    """

    plan: int
    name: str = "fixed"

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """That plan, everywhere."""
        return [_free(np.full(table.n, self.plan)) for _ in lams]


class BestFixed:
    """The fixed plan with the best accuracy - lambda * cost on the training table."""

    name = "best fixed plan"

    def __init__(self, train: Table) -> None:
        self._cost, self._accuracy = fixed_points(train)

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """One plan per lambda, for every input."""
        return [_free(np.full(table.n, np.argmax(self._accuracy - lam * self._cost))) for lam in lams]


class RegimeLine:
    """The best plan per task regime at one shared lambda, chosen on the training table.

    It is told the regime, which no policy is: what reading the kind of question alone can give at most. A regime that
    training never saw gets the best plan over all of it.
    """

    name = "regime line"

    def __init__(self, train: Table) -> None:
        names = sorted(set(train.regimes.tolist()))
        self._points = {name: fixed_points(train.subset(train.regimes == name)) for name in names}
        self._all = fixed_points(train)

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """One plan per regime and lambda."""
        regimes = sorted(set(table.regimes.tolist()))
        points = [self._points.get(regime, self._all) for regime in regimes]
        which = np.searchsorted(regimes, table.regimes)
        best = [np.array([np.argmax(accuracy - lam * cost) for cost, accuracy in points]) for lam in lams]
        return [_free(plans[which]) for plans in best]


class Oracle:
    """Hindsight: per input the plan with the best correct - lambda * cost, so the cheapest right one at low lambda.

    It also profits from luck (a plan that is right by chance on this input), so it is a bound that nothing reaches.
    """

    name = "naive oracle"

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """The best plan of each input at each lambda; ties to the lower column."""
        return [_free(np.argmax(table.correct - lam * table.share, axis=1)) for lam in lams]


@dataclass
class RandomChoice:
    """A plan drawn uniformly for each input, whatever lambda.

    Args:
        seed: of the draw.
    """

    seed: int = 0
    name: str = "random choice"

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """The same draw at every lambda."""
        drawn = np.random.default_rng(self.seed).integers(table.p, size=table.n)
        return [_free(drawn) for _ in lams]


def _free(plan: np.ndarray) -> Chosen:
    return Chosen(plan.astype(np.int64), np.zeros(len(plan)))

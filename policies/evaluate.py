"""What a way of choosing plans gives on a replay table: accuracy and cost at every trade-off weight lambda."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.plans.plan import Plan
from foveate.policies.hull import Line, line
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class Chosen:
    """One plan per input.

    Attributes:
        plan: (N,) int64 column of the table.
        looked: (N,) float64 FLOPs spent on deciding (features looked at, the controller), which no plan's cost holds.
    """

    plan: np.ndarray
    looked: np.ndarray


class Chooser(Protocol):
    """Anything that picks a plan per input: a fixed plan, a rival, a trained controller, the oracle."""

    name: str

    def choose(self, table: Table, lams: Sequence[float]) -> list[Chosen]:
        """The plans it takes on every input of a table, at each lambda."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a chooser gave at one lambda.

    Attributes:
        name: of the chooser.
        lam: the trade-off weight.
        plan: (N,) int64 column of the table.
        correct: (N,) float64, 1 where the answer is accepted.
        share: (N,) float64 cost / cost of the uncompressed plan, deciding included.
    """

    name: str
    lam: float
    plan: np.ndarray
    correct: np.ndarray
    share: np.ndarray

    @property
    def accuracy(self) -> float:
        """Mean of `correct`."""
        return float(self.correct.mean())

    @property
    def cost(self) -> float:
        """Mean of `share`."""
        return float(self.share.mean())

    @property
    def reward(self) -> float:
        """accuracy - lambda * cost."""
        return self.accuracy - self.lam * self.cost


def evaluate(chooser: Chooser, table: Table, lams: Sequence[float]) -> list[Outcome]:
    """One outcome per lambda, in the order given. Raises: ValueError on an empty table."""
    if not table.n:
        raise ValueError(f"evaluate: the table for {chooser.name!r} holds no input")
    chosen = chooser.choose(table, lams)
    return [settle(chooser.name, table, lam, each) for lam, each in zip(lams, chosen, strict=True)]


def settle(name: str, table: Table, lam: float, chosen: Chosen) -> Outcome:
    """What a choice gives, read off the table."""
    rows = np.arange(table.n)
    share = table.share[rows, chosen.plan] + chosen.looked / table.full
    return Outcome(name, float(lam), chosen.plan, table.correct[rows, chosen.plan].astype(np.float64), share)


def front(outcomes: Sequence[Outcome]) -> Line:
    """The outcomes as a polyline; `index` holds the place in `outcomes`."""
    return line(np.array([o.cost for o in outcomes]), np.array([o.accuracy for o in outcomes]))


def calibrate(outcomes: Sequence[Outcome]) -> tuple[tuple[float, float], ...]:
    """(lambda, mean cost share) by rising lambda: the controller's budget dial, measured on held-out inputs."""
    return tuple(sorted((o.lam, o.cost) for o in outcomes))


def method_of(plan: Plan) -> str:
    """What a plan does, without its keep ratios: "stage:method", several joined by " + "; "none" or "blind"."""
    if plan.is_blind:
        return "blind"
    return " + ".join(f"{stage}:{choice.method}" for stage, choice in plan.active) or "none"


def shares(outcome: Outcome, table: Table, whole_plan: bool = False) -> dict[str, dict[str, float]]:
    """regime -> {"stage:method": share of its inputs}, largest first; with `whole_plan`, keep ratios are told apart."""
    labels = np.array([plan.label() if whole_plan else method_of(plan) for plan in table.plans], dtype=object)
    out = {}
    for regime in sorted(set(table.regimes.tolist())):
        names, counts = np.unique(labels[outcome.plan[table.regimes == regime]].astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        out[regime] = {str(names[i]): float(counts[i] / counts.sum()) for i in order}
    return out


def by_regime(outcome: Outcome, table: Table) -> dict[str, tuple[float, float]]:
    """regime -> (mean cost share, mean accuracy)."""
    return {
        regime: (float(outcome.share[rows].mean()), float(outcome.correct[rows].mean()))
        for regime in sorted(set(table.regimes.tolist()))
        if (rows := table.regimes == regime).any()
    }

"""Fronts in (mean cost share, mean accuracy) and what separates them.

Fixed plans are chosen on a training table and measured on a test table. The hull of the fixed plans is reported twice:
chosen on the training table, and chosen on the very inputs that it is measured on, which flatters it and so is the
stricter rival. Significance is always judged against the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.policies.evaluate import Outcome, evaluate, front
from foveate.policies.hull import Line, hull_line, line, slopes
from foveate.policies.rivals import Oracle, RegimeLine, fixed_hull, fixed_points
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class Fronts:
    """The lines that a policy is held against, measured on one test table.

    Attributes:
        hull: upper hull of the fixed plans, chosen on the test inputs themselves.
        train_hull: the plans at the vertices of the training hull, measured on the test inputs.
        regime: the best plan per regime at each shared lambda, chosen in training.
        oracle: hindsight, one point per lambda.
    """

    hull: Line
    train_hull: Line
    regime: Line
    oracle: Line

    @classmethod
    def of(cls, train: Table, test: Table, lams: Sequence[float] | None = None) -> Fronts:
        """All of them. Raises: ValueError where the two tables hold different plans.

        Args:
            train: where plans are chosen.
            test: where they are measured.
            lams: lambdas of the regime line and of the oracle; None = `line_lambdas(train)`.
        """
        if train.plans != test.plans:
            raise ValueError("fronts: the training and the test table hold different plans")
        lams = line_lambdas(train) if lams is None else lams
        return cls(fixed_hull(test), train_hull(train, test), regime_line(train, test, lams), oracle_line(test, lams))


def train_hull(train: Table, test: Table) -> Line:
    """The training hull's plans by their test points: mixing neighbours, with no choice made on the test table."""
    plans = fixed_hull(train).index
    cost, accuracy = fixed_points(test)
    return line(cost[plans], accuracy[plans], plans)


def regime_line(train: Table, test: Table, lams: Sequence[float]) -> Line:
    """What `RegimeLine` gives over lambdas; `index` is the place of the lambda."""
    return front(evaluate(RegimeLine(train), test, lams))


def regime_line_by_fold(table: Table, lams: Sequence[float], k: int = 5, seed: int = 0) -> Line:
    """The regime line of one table: each fold of scene families is measured with plans chosen on the other folds."""
    fold = table.folds(k, seed)
    cost, accuracy = np.zeros(len(lams)), np.zeros(len(lams))
    for i in sorted(set(fold.tolist())):
        held = table.subset(fold == i)
        for j, outcome in enumerate(evaluate(RegimeLine(table.subset(fold != i)), held, lams)):
            cost[j] += outcome.cost * held.n / table.n
            accuracy[j] += outcome.accuracy * held.n / table.n
    return line(cost, accuracy)


def oracle_line(test: Table, lams: Sequence[float]) -> Line:
    """The upper hull of what hindsight gives over lambdas."""
    outcomes = evaluate(Oracle(), test, lams)
    return hull_line(np.array([o.cost for o in outcomes]), np.array([o.accuracy for o in outcomes]))


def line_lambdas(train: Table, points: int = 200) -> np.ndarray:
    """Lambdas, dense and geometric, from where only accuracy counts to where the cheapest plan wins everywhere.

    Their number bounds the gaps of the regime line: between two of them at most a few regimes change plan.
    """
    steepest = 1.0
    for regime in sorted(set(train.regimes.tolist())):
        found = slopes(fixed_hull(train.subset(train.regimes == regime)))
        steepest = max(steepest, float(found.max(initial=0.0)))
    return np.geomspace(1e-3, 2 * steepest, points)


def area(upper: Line, lower: Line, low: float, high: float = 1.0) -> float:
    """Integral of (upper - lower) d cost from `low` to `high`: mean gain in accuracy times the width, signed.

    Exact for polylines. Both are read as `Line.at` does: constant beyond their ends.
    """
    knots = np.unique(np.clip(np.concatenate([[low, high], upper.cost, lower.cost]), low, high))
    return float(np.trapezoid(upper.at(knots) - lower.at(knots), knots))


def reach_down(policy: Line, hull: Line) -> Line:
    """A line continued below its cheapest point by mixing with the cheapest fixed plan, as the hull's plans may be."""
    if policy.cost[0] <= hull.cost[0]:
        return policy
    costs, accuracies = np.append(hull.cost[:1], policy.cost), np.append(hull.accuracy[:1], policy.accuracy)
    return line(costs, accuracies, np.append(-1, policy.index))


def area_above_hull(policy: Line, hull: Line, high: float = 1.0) -> float:
    """Area between a policy's line and the hull, over all costs from the cheapest fixed plan to `high`."""
    return area(reach_down(policy, hull), hull, float(hull.cost[0]), high)


def gap_closed(policy: Line, hull: Line, oracle: Line, high: float = 1.0) -> float:
    """Share of the area between hull and oracle that the policy covers; NaN where there is no gap."""
    gap = area_above_hull(oracle, hull, high)
    return area_above_hull(policy, hull, high) / gap if gap > 0 else float("nan")


def gap_closed_at(outcome: Outcome, hull: Line, oracle: Line) -> float:
    """The same at the policy's own cost: (accuracy - hull) / (oracle - hull); NaN where there is no gap."""
    base = hull.at(outcome.cost)
    gap = oracle.at(outcome.cost) - base
    return (outcome.accuracy - base) / gap if gap > 0 else float("nan")


def flops_saved(outcome: Outcome, hull: Line) -> float:
    """1 - policy cost / cost of the hull at the policy's accuracy.

    Where no fixed plan reaches that accuracy, the most accurate one stands in: the true saving is larger.
    """
    needed = hull.cost_of(outcome.accuracy)
    needed = float(hull.cost[-1]) if np.isnan(needed) else needed
    return 1.0 - outcome.cost / needed


def hypervolume(points: Line, worst_cost: float = 1.0, worst_accuracy: float = 0.0) -> float:
    """Area that a front dominates in (cost, accuracy), up to the worst corner: without mixing, unlike `area`."""
    import moocore

    data = np.column_stack([points.cost, -points.accuracy])
    return float(moocore.hypervolume(data, ref=np.array([worst_cost, -worst_accuracy])))

"""Fronts of fixed plans in (mean cost share, mean accuracy): the upper convex hull, what mixing reaches, its slopes.

Tossing a coin between two fixed plans gives every point on the segment between them, so the upper convex hull of the
fixed plans is what can be had without looking at the input. A policy is worth something only above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """A polyline of points by rising cost, read with straight segments: mixing of neighbours.

    Attributes:
        cost: (K,) mean cost shares, strictly rising.
        accuracy: (K,) mean accuracies.
        index: (K,) which plan, or which lambda, each point is.
    """

    cost: np.ndarray
    accuracy: np.ndarray
    index: np.ndarray

    def at(self, cost: float | np.ndarray) -> float | np.ndarray:
        """Accuracy at a cost: constant beyond the last point (a budget need not be spent) and before the first."""
        value = np.interp(cost, self.cost, self.accuracy)
        return float(value) if np.ndim(value) == 0 else value

    def cost_of(self, accuracy: float) -> float:
        """The lowest cost that reaches an accuracy; NaN where no point does."""
        reached = np.flatnonzero(self.accuracy >= accuracy)
        if not reached.size:
            return float("nan")
        i = int(reached[0])
        if i == 0:
            return float(self.cost[0])
        (c0, c1), (a0, a1) = self.cost[i - 1 : i + 1], self.accuracy[i - 1 : i + 1]
        return float(c0 + (c1 - c0) * (accuracy - a0) / (a1 - a0))


def line(cost: np.ndarray, accuracy: np.ndarray, index: np.ndarray | None = None) -> Line:
    """A polyline through all points, sorted by cost; of points with one cost the most accurate stays.

    Raises:
        ValueError: no points, lengths that differ, or a value that is not finite.
    """
    cost, accuracy = _checked(cost, accuracy)
    index = np.arange(cost.size) if index is None else np.asarray(index)
    order = np.lexsort((-accuracy, cost))
    order = order[np.concatenate(([True], np.diff(cost[order]) > 0))]
    return Line(cost[order], accuracy[order], index[order])


def upper_hull(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Indices of the vertices of the upper convex hull by rising cost, from the cheapest point to the most accurate.

    Args:
        cost: (P,) mean cost per plan.
        accuracy: (P,) mean accuracy per plan.

    Returns:
        (K,) int64; accuracy rises strictly along it and the slope falls. Of equal points the lowest index stays.
    """
    cost, accuracy = _checked(cost, accuracy)
    hull: list[int] = []
    for i in np.lexsort((np.arange(cost.size), -accuracy, cost)):
        if hull and accuracy[i] <= accuracy[hull[-1]]:
            continue  # dearer and no better
        while len(hull) >= 2 and _above(cost, accuracy, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(int(i))
    return np.asarray(hull, np.int64)


def hull_line(cost: np.ndarray, accuracy: np.ndarray) -> Line:
    """The upper convex hull as a `Line`; `index` holds the plans at its vertices."""
    vertices = upper_hull(cost, accuracy)
    return Line(np.asarray(cost, float)[vertices], np.asarray(accuracy, float)[vertices], vertices)


def slopes(hull: Line) -> np.ndarray:
    """(K-1,) accuracy gained per cost share on each segment: the lambdas at which the best fixed plan changes."""
    return np.diff(hull.accuracy) / np.diff(hull.cost)


def lambda_range(hull: Line, low: float = 1e-3, high: float = 30.0) -> tuple[float, float]:
    """The lambdas worth training for: from half the hull's smallest slope, 0.1 at most, to twice its largest.

    Below it every segment of the hull is worth its cost, above it none is; single inputs may need a dearer plan than
    the hull's last one, hence the 0.1. Limited to `low` .. `high`, which a hull of one point gets.
    """
    found = slopes(hull)
    if not found.size:
        return low, high
    return float(np.clip(found.min() / 2, low, 0.1)), float(np.clip(found.max() * 2, 0.2, high))


def _above(cost: np.ndarray, accuracy: np.ndarray, a: int, b: int, c: int) -> bool:
    """Whether the segment from a to c passes over b, or through it."""
    return (accuracy[c] - accuracy[a]) * (cost[b] - cost[a]) >= (accuracy[b] - accuracy[a]) * (cost[c] - cost[a])


def _checked(cost: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cost, accuracy = np.asarray(cost, np.float64), np.asarray(accuracy, np.float64)
    if cost.ndim != 1 or cost.shape != accuracy.shape or not cost.size:
        raise ValueError(f"hull: cost {cost.shape} and accuracy {accuracy.shape} must be equally long, 1 at least")
    if not (np.isfinite(cost).all() and np.isfinite(accuracy).all()):
        raise ValueError("hull: a cost or an accuracy is not finite")
    return cost, accuracy

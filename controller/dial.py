"""The budget dial: from a wanted mean cost to the trade-off weight lambda that was measured to spend it.

A calibration is a list of (lambda, mean cost as a share of the uncompressed FLOPs), measured on held-out inputs.
Measured costs may rise a little with lambda by noise; the dial takes for each lambda the highest cost at this or any
larger one, so the curve never rises and never promises less than was measured. Between two points it is linear in
cost and in log lambda.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Calibration = Sequence[tuple[float, float]]


def check(calibration: Calibration) -> None:
    """Raises: ValueError unless lambdas are positive and rising and costs are not negative, all finite."""
    lams = [lam for lam, _ in calibration]
    if not all(math.isfinite(lam) and math.isfinite(cost) and lam > 0 and cost >= 0 for lam, cost in calibration):
        raise ValueError("calibration: needs finite pairs (lambda > 0, cost >= 0)")
    if any(b <= a for a, b in zip(lams, lams[1:], strict=False)):
        raise ValueError(f"calibration: lambdas must rise, got {lams}")


def lambda_for(calibration: Calibration, budget: float) -> float:
    """The smallest lambda whose calibrated mean cost is within a budget.

    Args:
        calibration: (lambda, mean cost share) pairs by rising lambda.
        budget: wanted mean cost as a share of the uncompressed FLOPs, > 0.

    Raises:
        ValueError: nothing was calibrated, or the budget is below the lowest calibrated cost.
    """
    if not calibration:
        raise ValueError("budget: this controller was exported without a calibration; set lam instead")
    lams, costs = _curve(calibration)
    if not budget >= costs[-1]:
        raise ValueError(f"budget: {budget} is below the lowest calibrated mean cost {costs[-1]:.4g}")
    inside = int(np.argmax(costs <= budget))
    if inside == 0:
        return float(lams[0])
    share = (costs[inside - 1] - budget) / (costs[inside - 1] - costs[inside])
    low, high = np.log(lams[inside - 1 : inside + 1])
    return float(min(np.exp(low + share * (high - low)), lams[-1]))


def cost_at(calibration: Calibration, lam: float) -> float:
    """The mean cost share at a lambda, constant beyond the calibrated range. Raises: ValueError if not calibrated."""
    if not calibration:
        raise ValueError("cost: this controller was exported without a calibration")
    lams, costs = _curve(calibration)
    return float(np.interp(np.log(lam), np.log(lams), costs))


def _curve(calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """lambdas, and costs made to fall."""
    lams, costs = np.asarray(calibration, np.float64).T
    return lams, np.maximum.accumulate(costs[::-1])[::-1]

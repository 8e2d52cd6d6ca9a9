"""The budget dial: monotone, exact at the calibrated points, never above what was measured."""

import numpy as np
import pytest

from foveate.controller.dial import check, cost_at, lambda_for

pytestmark = pytest.mark.fast

CURVE = ((0.01, 0.9), (0.1, 0.6), (1.0, 0.2))
NOISY = ((0.01, 0.7), (0.1, 0.8), (1.0, 0.4), (2.0, 0.4), (4.0, 0.1))  # rises by noise, then a plateau


@pytest.mark.parametrize("curve", [CURVE, NOISY])
def test_a_smaller_budget_never_gives_a_smaller_lambda(curve):
    budgets = np.linspace(curve[-1][1], 1.2, 400)
    lams = [lambda_for(curve, b) for b in budgets]
    assert all(a >= b for a, b in zip(lams, lams[1:], strict=False))
    assert lams[0] == pytest.approx(curve[-1][0]) and lams[-1] == curve[0][0]


@pytest.mark.parametrize("curve", [CURVE, NOISY])
def test_the_cost_at_the_dialled_lambda_is_within_the_budget(curve):
    for budget in np.linspace(curve[-1][1], 1.0, 97):
        assert cost_at(curve, lambda_for(curve, budget)) <= budget + 1e-9


def test_calibrated_points_and_the_logarithmic_middle_are_exact():
    assert [lambda_for(CURVE, cost) for _, cost in CURVE] == pytest.approx([0.01, 0.1, 1.0])
    assert lambda_for(CURVE, 0.4) == pytest.approx(np.sqrt(0.1 * 1.0))
    assert cost_at(CURVE, np.sqrt(0.1)) == pytest.approx(0.4)


def test_a_plateau_gives_its_smallest_lambda():
    assert lambda_for(NOISY, 0.4) == pytest.approx(1.0)


def test_a_cost_that_rises_by_noise_is_not_believed():
    assert cost_at(NOISY, 0.01) == 0.8 and lambda_for(NOISY, 0.75) > 0.1


@pytest.mark.parametrize(
    ("curve", "budget", "message"),
    [
        (CURVE, 0.1, "budget: 0.1 is below the lowest calibrated mean cost 0.2"),
        (CURVE, float("nan"), "budget: nan"),
        ((), 0.5, "without a calibration"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_by_name(curve, budget, message):
    with pytest.raises(ValueError, match=message):
        lambda_for(curve, budget)


@pytest.mark.parametrize("curve", [((0.1, 0.5), (0.1, 0.4)), ((0.0, 0.5),), ((0.1, float("nan")),), ((0.1, -0.2),)])
def test_a_calibration_that_is_none_is_refused(curve):
    with pytest.raises(ValueError, match="calibration: "):
        check(curve)

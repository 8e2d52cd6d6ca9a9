import numpy as np
import pytest

from foveate.policies.hull import hull_line, lambda_range, line, slopes, upper_hull

pytestmark = pytest.mark.fast

COST = np.array([1.0, 0.1, 0.3, 0.5, 0.6])
ACCURACY = np.array([0.9, 0.1, 0.6, 0.65, 0.9])


def test_the_hull_keeps_the_points_that_no_mix_of_others_reaches():
    # 0.5 lies under the segment from 0.3 to 0.6; 1.0 is dearer than 0.6 and no better
    assert upper_hull(COST, ACCURACY).tolist() == [1, 2, 4]


def test_a_point_on_a_segment_is_no_vertex():
    assert upper_hull(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.25, 0.5])).tolist() == [0, 2]


def test_of_equal_points_the_first_stays_and_of_equal_costs_the_better():
    assert upper_hull(np.array([0.2, 0.2, 0.2]), np.array([0.5, 0.7, 0.7])).tolist() == [1]


def test_a_hull_is_read_between_and_beyond_its_vertices():
    hull = hull_line(COST, ACCURACY)
    assert hull.at(0.2) == pytest.approx(0.35)  # half way from 0.1 to 0.6
    assert hull.at(0.45) == pytest.approx(0.75)
    assert (hull.at(0.05), hull.at(2.0)) == (0.1, 0.9)
    assert hull.at(np.array([0.1, 0.6])).tolist() == [0.1, 0.9]


def test_the_cost_of_an_accuracy_inverts_the_line():
    hull = hull_line(COST, ACCURACY)
    assert hull.cost_of(0.35) == pytest.approx(0.2)
    assert hull.cost_of(0.05) == 0.1
    assert np.isnan(hull.cost_of(0.91))


def test_no_plan_lies_above_the_hull_of_random_plans():
    rng = np.random.default_rng(0)
    for _ in range(50):
        cost, accuracy = rng.random(30), rng.random(30)
        hull = hull_line(cost, accuracy)
        assert (accuracy <= hull.at(cost) + 1e-12).all()
        assert (np.diff(slopes(hull)) < 0).all()
        assert (np.diff(hull.accuracy) > 0).all()


def test_lambdas_reach_beyond_the_slopes():
    hull = hull_line(COST, ACCURACY)
    assert slopes(hull).tolist() == pytest.approx([2.5, 1.0])
    assert lambda_range(hull) == pytest.approx((0.1, 5.0))
    assert lambda_range(hull_line(np.array([1.0]), np.array([0.5]))) == (1e-3, 30.0)


def test_a_line_sorts_its_points_and_keeps_the_best_of_one_cost():
    some = line(np.array([0.5, 0.2, 0.5]), np.array([0.6, 0.3, 0.7]))
    assert (some.cost.tolist(), some.accuracy.tolist(), some.index.tolist()) == ([0.2, 0.5], [0.3, 0.7], [1, 2])


def test_points_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        upper_hull(np.array([0.1, np.nan]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="equally long"):
        line(np.array([0.1]), np.array([0.1, 0.2]))

import numpy as np
import pytest

from foveate.analysis.curves import (
    Fronts,
    area,
    area_above_hull,
    flops_saved,
    gap_closed,
    gap_closed_at,
    hypervolume,
    line_lambdas,
    reach_down,
    regime_line,
    regime_line_by_fold,
    train_hull,
)
from foveate.policies.evaluate import Outcome, evaluate
from foveate.policies.hull import hull_line, line
from foveate.policies.rivals import Oracle, fixed_hull

pytestmark = pytest.mark.fast

HULL = hull_line(np.array([0.1, 0.5, 1.0]), np.array([0.0, 0.8, 1.0]))


def outcome(cost, accuracy):
    return Outcome("x", 1.0, np.zeros(2, int), np.full(2, accuracy), np.full(2, cost))


def with_regimes(table, names):
    object.__setattr__(table, "regimes", np.asarray(names))
    return table


def by_kind(table):
    """The table with its kinds as regimes."""
    return with_regimes(table, np.array(["coarse", "salient", "fine"])[3 - table.correct[:, 2:5].sum(axis=1)])


def test_the_area_between_two_lines_is_exact():
    upper, lower = line(np.array([0.0, 1.0]), np.array([1.0, 1.0])), line(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert area(upper, lower, 0.0) == pytest.approx(0.5)
    assert area(lower, upper, 0.0) == pytest.approx(-0.5)
    assert area(upper, lower, 0.0, 0.5) == pytest.approx(0.375)


def test_a_policy_on_the_hull_has_no_area_and_nothing_closed():
    oracle = line(np.array([0.1, 0.3]), np.array([0.0, 1.0]))
    assert area_above_hull(HULL, HULL) == pytest.approx(0.0)
    assert gap_closed(HULL, HULL, oracle) == pytest.approx(0.0)
    assert gap_closed(oracle, HULL, oracle) == pytest.approx(1.0)
    assert np.isnan(gap_closed(HULL, HULL, HULL))


def test_a_line_reaches_down_by_mixing_with_the_cheapest_plan():
    single = line(np.array([0.5]), np.array([1.0]))
    assert reach_down(single, HULL).at(0.3) == pytest.approx(0.5)
    # 0.1 .. 0.5: triangle of height 0.2 at 0.5; 0.5 .. 1.0: triangle of height 0.2
    assert area_above_hull(single, HULL) == pytest.approx(0.2 * 0.4 / 2 + 0.2 * 0.5 / 2)
    assert reach_down(HULL, HULL) is HULL


def test_savings_at_equal_accuracy():
    assert flops_saved(outcome(0.25, 0.8), HULL) == pytest.approx(0.5)
    assert flops_saved(outcome(0.6, 0.8), HULL) == pytest.approx(-0.2)
    better = hull_line(np.array([0.1, 0.5]), np.array([0.0, 0.8]))
    assert flops_saved(outcome(0.4, 0.9), better) == pytest.approx(0.2)  # against the most accurate plan there is


def test_the_gap_closed_at_a_cost():
    oracle = line(np.array([0.1, 0.3]), np.array([0.0, 1.0]))
    assert gap_closed_at(outcome(0.3, 0.7), HULL, oracle) == pytest.approx((0.7 - 0.4) / (1 - 0.4))
    assert np.isnan(gap_closed_at(outcome(1.0, 1.0), HULL, oracle))


def test_the_hypervolume_counts_steps_and_no_mixing():
    assert hypervolume(line(np.array([0.25, 0.5]), np.array([0.5, 1.0]))) == pytest.approx(0.25 * 0.5 + 0.5 * 1.0)


def test_the_regime_line_equals_the_oracle_where_regimes_tell_everything(toy):
    train, test = by_kind(toy.table(300)), by_kind(toy.table(300, seed=1))
    fronts = Fronts.of(train, test)
    oracle = evaluate(Oracle(), test, [0.3])[0]
    assert fronts.regime.at(oracle.cost) == pytest.approx(1.0)
    assert fronts.regime.at(0.9) == 1.0
    assert gap_closed(fronts.regime, fronts.hull, fronts.oracle) > 0.9


def test_the_regime_line_lies_on_the_hull_where_regimes_tell_nothing(toy):
    train, test = toy.table(2000), toy.table(2000, seed=1)
    regime, hull = regime_line(train, test, line_lambdas(train)), fixed_hull(test)
    costs = np.linspace(0.05, 0.65, 30)
    assert np.abs(regime.at(costs) - hull.at(costs)).max() < 0.03


def test_plans_of_the_training_hull_are_measured_on_the_test_table(toy):
    train, test = toy.table(300), by_kind(toy.table(300, seed=1))
    only_fine = test.subset(test.regimes == "fine")
    chosen = train_hull(train, only_fine)
    assert chosen.index.tolist() == [1, 3, 4]
    assert chosen.accuracy.tolist() == [0.0, 0.0, 1.0]  # visionzip pays in training, never on these
    assert fixed_hull(only_fine).index.tolist() == [1, 4]


def test_the_test_hull_is_never_below_the_training_hull(toy):
    train, test = toy.table(60, noise=0.3), toy.table(60, seed=1, noise=0.3)
    costs = np.linspace(0.05, 1.0, 40)
    assert (fixed_hull(test).at(costs) >= train_hull(train, test).at(costs) - 1e-12).all()


def test_a_cross_fitted_regime_line_never_measures_where_it_chose(toy):
    table = with_regimes(toy.table(200), [f"r{i // 2}" for i in range(200)])  # each family is a regime of its own
    honest = regime_line_by_fold(table, [0.01])
    cheating = regime_line(table, table, [0.01])
    assert (cheating.cost[0], cheating.accuracy[0]) == (pytest.approx(0.51, abs=0.02), 1.0)  # each family's own plan
    assert (honest.cost[0], honest.accuracy[0]) == (pytest.approx(0.65), 1.0)  # unseen regimes: the best plan of all


def test_the_lambdas_of_a_line_span_all_that_regimes_could_pay(toy):
    lams = line_lambdas(by_kind(toy.table(300)))
    # coarse: from blind to downsample, 1 / 0.15
    assert lams[0] == pytest.approx(1e-3) and lams[-1] == pytest.approx(2 / 0.15)


def test_tables_of_other_plans_are_refused(toy):
    table = toy.table(20)
    other = toy.table(20)
    object.__setattr__(other, "plans", other.plans[:1] + other.plans[:0:-1])
    with pytest.raises(ValueError, match="different plans"):
        Fronts.of(table, other)

import numpy as np
import pytest

from foveate.analysis.bootstrap import gain_over_hull, gain_over_line, mean_difference
from foveate.analysis.permutation import permute
from foveate.policies.evaluate import Chosen, evaluate, settle
from foveate.policies.hull import hull_line
from foveate.policies.rivals import BestFixed, Fixed, Oracle, RandomChoice, RegimeLine

pytestmark = pytest.mark.fast


def chosen(table, plan):
    return settle("x", table, 1.0, Chosen(np.asarray(plan), np.zeros(table.n)))


def test_a_real_gain_is_found_and_its_interval_holds_the_value(toy):
    table = toy.table(300)
    gain = gain_over_hull(evaluate(Oracle(), table, [0.3])[0], table, 500)
    assert gain.low < gain.value < gain.high
    assert gain.low > 0.15 and gain.wrong == 0.0 and gain.resamples == 500
    # at cost c between visionzip (0.3) and fastv (0.65)
    outcome = evaluate(Oracle(), table, [0.3])[0]
    share = table.correct[:, 3].mean()
    assert gain.value == pytest.approx(1 - (share + (1 - share) * (outcome.cost - 0.3) / 0.35))


def test_a_fixed_plan_on_the_hull_gains_nothing(toy):
    table = toy.table(300)
    gain = gain_over_hull(chosen(table, np.full(300, 4)), table, 300)
    assert gain.value == pytest.approx(0.0, abs=1e-12)
    assert gain.high <= 1e-9


def test_random_mixing_of_two_hull_plans_is_no_gain(toy):
    table = toy.table(400)
    mixed = np.where(np.random.default_rng(0).random(400) < 0.5, 3, 4)
    gain = gain_over_hull(chosen(table, mixed), table, 400)
    assert gain.low < 0 < gain.high


def test_the_hull_is_computed_anew_in_every_resample(toy):
    """The slow way, one resample after the other, gives the same interval."""
    table = toy.table(40, noise=0.3)
    outcome = evaluate(Oracle(), table, [0.5])[0]
    gain = gain_over_hull(outcome, table, 60, seed=3)
    families = table.family_index()
    n = families.max() + 1
    drawn = np.random.default_rng(3).multinomial(n, np.full(n, 1 / n), size=60)
    values = []
    for counts in drawn:
        rows = np.repeat(np.arange(table.n), counts[families])
        hull = hull_line(table.share[rows].mean(axis=0), table.correct[rows].mean(axis=0))
        values.append(outcome.correct[rows].mean() - hull.at(outcome.share[rows].mean()))
    assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_families_are_drawn_whole(toy):
    table = toy.table(200)
    values = np.tile([1.0, -1.0], 100)  # cancels within every family of two
    gain = mean_difference(values, table, 200)
    assert (gain.low, gain.high) == (0.0, 0.0)
    assert mean_difference(np.repeat(values[:100], 2), table, 200).high > 0.1


def test_a_rivals_line_is_read_at_the_policys_cost(toy):
    table = toy.table(200)
    line = evaluate(RegimeLine(toy.table(400, seed=1)), table, [0.05, 1.5, 20.0])
    gain = gain_over_line(evaluate(Oracle(), table, [0.3])[0], line, table, 200)
    same = gain_over_line(line[1], line, table, 200)
    assert gain.low > 0.1
    assert same.value == pytest.approx(0.0, abs=1e-9)


def test_one_family_is_too_few(toy):
    table = toy.table(2)
    with pytest.raises(ValueError, match="1 scene families"):
        gain_over_hull(chosen(table, [0, 0]), table)


def test_permuting_a_constant_policy_loses_nothing(toy):
    table = toy.table(100)
    permuted = permute(evaluate(BestFixed(table), table, [0.3])[0], table, 50)
    assert permuted.drop.value == pytest.approx(0.0, abs=1e-12)
    assert permuted.outcome.cost == pytest.approx(0.65)


def test_permuting_a_random_policy_loses_nothing_on_average(toy):
    table = toy.table(1000)
    permuted = permute(evaluate(RandomChoice(1), table, [1.0])[0], table, 300)
    assert permuted.drop.low < 0 < permuted.drop.high


def test_permutation_by_hand(toy):
    # regime "even": inputs 0, 2, 4 with plans a, a, b
    table = toy.table(6)
    plan = np.array([2, 0, 2, 0, 4, 0])
    permuted = permute(chosen(table, plan), table, 10).outcome
    right = table.correct.astype(float)
    assert permuted.correct[0] == pytest.approx((right[0, 2] + right[0, 4]) / 2)
    assert permuted.correct[2] == pytest.approx((right[2, 2] + right[2, 4]) / 2)
    assert permuted.correct[4] == pytest.approx(right[4, 2])
    assert permuted.share[4] == pytest.approx(0.2)
    assert permuted.share[0] == pytest.approx((0.2 + 0.65) / 2)


def test_it_equals_the_mean_over_drawn_permutations(toy):
    table = toy.table(60, noise=0.2)
    outcome = chosen(table, np.random.default_rng(0).integers(6, size=60))
    rng, drawn = np.random.default_rng(1), []
    for _ in range(3000):
        other = outcome.plan.copy()
        for regime in ("even", "odd"):
            rows = np.flatnonzero(table.regimes == regime)
            shift = rng.integers(1, len(rows))  # a rotation of a random order: nobody keeps its own plan
            order = rng.permutation(rows)
            other[order] = outcome.plan[np.roll(order, shift)]
        drawn.append(table.correct[np.arange(60), other].mean())
    assert permute(outcome, table, 10).outcome.accuracy == pytest.approx(np.mean(drawn), abs=0.004)


def test_deciding_costs_the_same_after_permuting_and_reward_counts_cost(toy):
    table = toy.table(100)
    looked = settle("x", table, 1.0, Chosen(evaluate(Oracle(), table, [0.3])[0].plan, 0.01 * table.full))
    permuted = permute(looked, table, 50)
    assert permuted.outcome.cost == pytest.approx(looked.cost)
    assert permuted.drop.value > 0.2
    assert permuted.reward_drop.value == pytest.approx(permuted.drop.value)


def test_an_input_alone_in_its_regime_keeps_its_plan(toy):
    table = toy.table(3)
    object.__setattr__(table, "regimes", np.array(["a", "b", "b"]))
    permuted = permute(chosen(table, [2, 3, 3]), table, 10).outcome
    assert permuted.correct[0] == table.correct[0, 2]


def test_the_gain_reads_as_points(toy):
    table = toy.table(100)
    assert "points [" in str(gain_over_hull(evaluate(Fixed(0), table, [1.0])[0], table, 20))

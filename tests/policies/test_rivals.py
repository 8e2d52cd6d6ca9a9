import numpy as np
import pytest

from foveate.policies.evaluate import Chosen, by_regime, calibrate, evaluate, front, settle, shares
from foveate.policies.rivals import BestFixed, Fixed, Oracle, RandomChoice, RegimeLine, fixed_hull, fixed_points

pytestmark = pytest.mark.fast


def kinds(table, toy):
    """Kind of each input, read off the plans that are right."""
    return 3 - table.correct[:, [2, 3, 4]].sum(axis=1)


def test_fixed_points_are_means_over_inputs(toy):
    cost, accuracy = fixed_points(toy.table(300))
    share = np.bincount(kinds(toy.table(300), toy), minlength=3) / 300
    assert cost.tolist() == pytest.approx(toy.SHARES.tolist())
    assert accuracy.tolist() == pytest.approx((share @ toy.RIGHT).tolist())


def test_the_oracle_takes_the_cheapest_right_plan(toy):
    table = toy.table(200)
    outcome = evaluate(Oracle(), table, [0.1])[0]
    assert outcome.plan.tolist() == toy.CHEAPEST[kinds(table, toy)].tolist()
    assert outcome.accuracy == 1.0


def test_the_oracle_answers_blind_where_being_right_is_not_worth_it(toy):
    # lambda 2: fine needs 0.65 - 0.05 = 0.6 more cost, worth 1.2 > 1; salient 0.25, worth 0.5 < 1
    table = toy.table(200)
    plan = evaluate(Oracle(), table, [2.0])[0].plan
    assert plan.tolist() == np.array([2, 3, 1])[kinds(table, toy)].tolist()


def test_the_best_fixed_plan_is_chosen_in_training_and_moves_along_the_hull(toy):
    train = toy.table(600)
    chosen = BestFixed(train).choose(toy.table(50, seed=1), [0.1, 1.5, 10.0])
    assert [set(c.plan.tolist()) for c in chosen] == [{4}, {3}, {1}]
    assert fixed_hull(train).index.tolist() == [1, 3, 4]


def test_the_regime_line_uses_each_regimes_own_plan_and_knows_a_way_out_for_new_ones(toy):
    train = toy.table(600)
    easy = train.correct[:, 2]  # coarse inputs are one regime, the others another
    object.__setattr__(train, "regimes", np.where(easy, "easy", "hard"))
    test = train.subset(np.arange(20))
    object.__setattr__(test, "regimes", np.array(["new"] + ["easy" if e else "hard" for e in easy[1:20]]))
    plan = RegimeLine(train).choose(test, [0.1])[0].plan
    assert plan[0] == 4  # the best fixed plan over all of it
    assert plan[1:].tolist() == np.where(easy[1:20], 2, 4).tolist()


def test_random_choice_is_a_function_of_its_seed(toy):
    table = toy.table(400)
    one, two, other = (RandomChoice(seed).choose(table, [1.0])[0].plan for seed in (0, 0, 1))
    assert one.tolist() == two.tolist() != other.tolist()
    assert np.bincount(one, minlength=6).min() > 40


def test_deciding_is_charged_beside_the_plan(toy):
    table = toy.table(10)
    outcome = settle("x", table, 2.0, Chosen(np.full(10, 3), np.full(10, 0.1) * table.full))
    assert outcome.cost == pytest.approx(0.4)
    assert outcome.reward == pytest.approx(table.correct[:, 3].mean() - 0.8)


def test_fronts_and_calibrations_are_sorted(toy):
    outcomes = evaluate(BestFixed(toy.table(600)), toy.table(100, seed=1), [10.0, 0.1, 1.5])
    assert front(outcomes).cost.tolist() == pytest.approx([0.05, 0.3, 0.65])
    assert calibrate(outcomes) == ((0.1, pytest.approx(0.65)), (1.5, pytest.approx(0.3)), (10.0, pytest.approx(0.05)))


def test_shares_are_counted_per_regime(toy):
    table = toy.table(4)
    outcome = settle("x", table, 1.0, Chosen(np.array([0, 4, 0, 5]), np.zeros(4)))
    assert shares(outcome, table) == {"even": {"none": 1.0}, "odd": {"prefill:fastv": 1.0}}
    whole = shares(outcome, table, whole_plan=True)
    assert whole["odd"] == {"prefill:fastv@0.25": 0.5, "prefill:fastv@0.5": 0.5}
    assert by_regime(outcome, table)["odd"][0] == pytest.approx((0.65 + 0.5) / 2)


def test_an_empty_table_is_refused(toy):
    with pytest.raises(ValueError, match="holds no input"):
        evaluate(Fixed(0), toy.table(4).subset([]), [1.0])

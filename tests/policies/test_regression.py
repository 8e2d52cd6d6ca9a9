import numpy as np
import pytest
import torch

from foveate.policies.evaluate import evaluate
from foveate.policies.forest import Forest, Neighbours
from foveate.policies.regression import PlanRegression, Recipe
from foveate.policies.rivals import BestFixed, Oracle
from foveate.policies.staged import Staged
from foveate.policies.views import vectors

RECIPE = Recipe(members=2, width=24, epochs=40, batch=64, learning_rate=3e-3)
COSTS = {"block1": 5e5, "encoder": 1e6, "layer1": 2e6}


@pytest.fixture(scope="module")
def fitted(toy):
    return PlanRegression(toy.table(500, costs=COSTS), toy.table(200, seed=1), RECIPE)


class Told:
    """A predictor that says what it is told, by the groups seen."""

    name, flops = "told", 1000

    def __init__(self, toy, **quality):
        self.cost, self.quality = toy.SHARES, quality

    def predict(self, table, groups):
        return np.tile(np.array(self.quality[groups[-1]], np.float32), (table.n, 1))


def test_the_exported_network_gives_the_ensembles_mean_probability(fitted, toy):
    table = toy.table(64, seed=2)
    for groups in (("pixels", "question"), ("pixels", "question", "encoder", "layer1")):
        z = fitted.standard(torch.from_numpy(vectors(table, fitted.standard.layout, groups)))
        with torch.no_grad():
            mean = torch.sigmoid(fitted.net(z)).mean(dim=0).numpy()
        np.testing.assert_allclose(fitted.predict(table, groups), mean, atol=1e-6)


def test_the_exported_cost_is_the_mean_share_of_each_plan(fitted, toy):
    scores = fitted.network(np.zeros((1, fitted.standard.layout.size)))
    assert scores[1][0, :, 0].tolist() == pytest.approx(toy.SHARES.tolist())


def test_the_cascade_finds_the_cheapest_right_plan_of_each_kind(fitted, toy):
    test = toy.table(400, seed=2)
    cascade = evaluate(Staged(fitted), test, [1.0])[0]
    best, fixed = evaluate(Oracle(), test, [1.0])[0], evaluate(BestFixed(test), test, [1.0])[0]
    assert cascade.accuracy > 0.98
    assert (cascade.reward - fixed.reward) / (best.reward - fixed.reward) > 0.8


def test_one_look_at_the_start_knows_less_than_the_cascade(fitted, toy):
    test = toy.table(400, seed=2)
    once, often = (evaluate(Staged(fitted, at), test, [1.0])[0] for at in (("input",), ("input", "outside", "prefill")))
    assert once.reward < often.reward - 0.05


def test_features_that_are_not_seen_yet_cannot_change_a_decision(fitted, toy):
    table, other = toy.table(300, seed=2), toy.table(300, seed=2)
    other.groups["encoder"][:] = other.groups["encoder"][::-1]
    other.groups["layer1"][:] = 0
    one, two = (Staged(fitted).choose(t, [1.0])[0].plan for t in (table, other))
    at_input = np.isin(one, [1, 2])
    assert 0.2 < at_input.mean() < 0.5
    assert (one[at_input] == two[at_input]).all()
    assert (one != two).any()


def test_the_same_seed_gives_the_same_network(toy):
    tables = toy.table(100), toy.table(60, seed=1)
    one, two, other = (PlanRegression(*tables, Recipe(epochs=2), seed=seed) for seed in (3, 3, 4))
    for name, array in one.network.arrays.items():
        assert np.array_equal(array, two.network.arrays[name])
    assert not np.array_equal(one.network.arrays["trunk.1.weight"], other.network.arrays["trunk.1.weight"])


def test_training_leaves_the_global_generator_alone(toy):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    PlanRegression(toy.table(60), toy.table(60, seed=1), Recipe(epochs=1))
    assert torch.equal(torch.rand(1), expected)


def test_it_stops_where_the_validation_loss_stops_falling(toy):
    noise = toy.table(120, noise=0.5)
    fitted = PlanRegression(noise, toy.table(120, seed=1, noise=0.5), Recipe(epochs=60, patience=3))
    losses = [val for _, _, val in fitted.losses]
    assert len(losses) < 60
    assert int(np.argmin(losses)) == len(losses) - 4


def test_an_empty_validation_table_is_refused(toy):
    with pytest.raises(ValueError, match="validation table holds no input"):
        PlanRegression(toy.table(20), toy.table(20).subset([]))


# plans: uncompressed, blind, downsample (at input), visionzip (outside), fastv@0.5, fastv@0.25 (prefill)
def test_it_waits_for_a_later_plan_and_looks_again(toy):
    first = [0.9, 0.0, 0.1, 0.2, 0.95, 0.1]  # lambda 0.5: fastv@0.5 is worth most, 0.95 - 0.325
    told = Told(toy, question=first, encoder=[0.9, 0.0, 0.1, 0.9, 0.2, 0.1], layer1=[0.9, 0, 0, 0, 0, 0])
    chosen = Staged(told).choose(toy.table(3, costs=COSTS), [0.5])[0]
    assert chosen.plan.tolist() == [3, 3, 3]
    assert chosen.looked.tolist() == [1e6 + 2 * 1000] * 3  # encoder features, two decisions


def test_a_plan_that_was_passed_by_cannot_be_taken_later(toy):
    late = [0.3, 1.0, 1.0, 1.0, 0.2, 0.1]
    told = Told(toy, question=[1.0, 0, 0, 0, 0, 0], encoder=[1.0, 0, 0, 0, 0, 0], layer1=late)
    chosen = Staged(told).choose(toy.table(2, costs=COSTS), [0.01])[0]
    assert chosen.plan.tolist() == [0, 0]
    assert chosen.looked.tolist() == [3e6 + 3 * 1000] * 2


def test_one_stop_decides_for_all_later_stages(toy):
    told = Told(toy, encoder=[0.2, 1.0, 1.0, 0.1, 0.9, 0.1])
    chosen = Staged(told, ("outside",)).choose(toy.table(2), [0.01])[0]
    assert chosen.plan.tolist() == [4, 4]


def test_a_stage_that_is_none_is_refused(toy):
    with pytest.raises(ValueError, match="at: "):
        Staged(Told(toy), ("middle",))
    with pytest.raises(ValueError, match="no plan of the table first acts at encoder"):
        Staged(Told(toy), ("encoder",)).choose(toy.table(2), [1.0])


def test_the_forest_and_the_neighbours_learn_it_too(toy):
    train, test = toy.table(500), toy.table(200, seed=2)
    forest = evaluate(Staged(Forest(train, trees=40)), test, [1.0])[0]
    assert (forest.accuracy, forest.cost) == (1.0, pytest.approx(0.385, abs=0.02))
    near = evaluate(Staged(Neighbours(train), ("input",)), test, [1.0])[0]
    assert near.reward > evaluate(BestFixed(train), test, [1.0])[0].reward + 0.02


def test_the_mean_of_k_neighbours_counts_them(toy):
    train = toy.table(50)
    everyone = Neighbours(train, k=50).predict(toy.table(2, seed=9), ("pixels",))
    np.testing.assert_allclose(everyone, np.tile(train.correct.mean(axis=0), (2, 1)), atol=1e-6)


def test_a_question_only_router_cannot_tell_kinds_that_the_question_does_not(toy):
    train, test = toy.table(400), toy.table(200, seed=2)
    router = Staged(Forest(train, groups=("question",), leaf=50, trees=20), ("input",), reads=("question",))
    fixed = evaluate(BestFixed(train), test, [1.0])[0]
    assert evaluate(router, test, [1.0])[0].reward == pytest.approx(fixed.reward, abs=0.05)
    train, test = toy.table(400, clear=("question",)), toy.table(200, seed=2, clear=("question",))
    router = Staged(Forest(train, groups=("question",), leaf=20, trees=40), ("input",), reads=("question",))
    assert evaluate(router, test, [1.0])[0].reward > evaluate(Oracle(), test, [1.0])[0].reward - 0.05

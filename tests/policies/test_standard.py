import numpy as np
import pytest
import torch

from foveate.controller.observation import HEAD
from foveate.envs.episode import Terms
from foveate.policies.standard import Standard
from foveate.policies.views import acts_at, spent_at, stops, vectors, with_head
from foveate.rollouts.table_env import TableVecEnv

pytestmark = pytest.mark.fast


def test_only_stages_at_which_a_plan_first_acts_are_stops(toy):
    assert stops(toy.PLANS) == {
        "input": ("pixels", "question"),
        "outside": ("pixels", "question", "encoder"),
        "prefill": ("pixels", "question", "encoder", "layer1"),
    }
    assert [acts_at(plan) for plan in toy.PLANS] == [6, 0, 0, 2, 4, 4]


def test_an_observation_is_the_one_that_the_environment_gives(toy):
    table = toy.table(20, costs={"encoder": 1e7, "layer1": 2e7})
    env = TableVecEnv(table, toy.PORTFOLIO, Terms(lam=(0.7, 0.7), budget_share=0.0), groups=5, k=1)
    seen = [env.reset()["vector"]]
    for _ in range(2):
        seen.append(env.step(np.zeros((5, 2)))[0]["vector"])
    rows = env._row  # which inputs were drawn
    layout = Standard.fit(table).layout
    for (stage, groups), theirs in zip(stops(table.plans).items(), seen, strict=True):
        mine = with_head(vectors(table, layout, groups), stage, 0.7, spent_at(table, stage))
        np.testing.assert_array_equal(mine[rows], theirs)


def test_what_is_unseen_or_unread_is_zero_and_what_is_seen_is_standardised(toy):
    table = toy.table(500)
    standard = Standard.fit(table, head=("log_lambda",), groups=("pixels", "encoder"))
    layout = standard.layout
    x = torch.from_numpy(with_head(vectors(table, layout, ("pixels", "question")), "input", 1.0, np.zeros(500)))
    z = standard(x).numpy()
    for group in ("question", "encoder", "layer1"):
        assert not z[:, layout.slices[group]].any()
    assert not np.delete(z[:, : len(HEAD)], HEAD.index("log_lambda"), axis=1).any()
    inside = z[:, layout.slices["pixels"]][:, 1:]
    assert inside.mean(axis=0) == pytest.approx(np.zeros(inside.shape[1]), abs=1e-4)
    assert inside.std(axis=0) == pytest.approx(np.ones(inside.shape[1]), abs=1e-3)


@pytest.mark.parametrize("groups", [(), ("pixels",), ("pixels", "question", "encoder"), ("block1", "layer1")])
def test_a_folded_layer_gives_the_same_sums_on_exported_statistics(toy, groups):
    train, other = toy.table(300), toy.table(50, seed=5)
    other.groups["encoder"][:10] *= 40  # far outside the training range: both clip
    standard = Standard.fit(train)
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(16, standard.layout.size)), rng.normal(size=16)
    x = with_head(vectors(other, standard.layout, groups), "outside", 0.3, np.full(50, 0.2))
    mine = standard(torch.from_numpy(x)).numpy() @ weight.T + bias
    folded_weight, folded_bias = standard.fold(weight, bias)
    theirs = standard.normalisation(x) @ folded_weight.T.astype(np.float64) + folded_bias
    np.testing.assert_allclose(mine, theirs, atol=2e-4)


def test_a_feature_that_never_varied_stays_harmless(toy):
    train = toy.table(100)
    train.groups["encoder"][:, 0] = 7.0
    standard = Standard.fit(train)
    place = standard.layout.slices["encoder"].start + 1
    assert standard.scale[place] == pytest.approx(0.35)
    assert standard.clip >= 20


def test_an_empty_or_foreign_table_is_refused(toy):
    with pytest.raises(ValueError, match="holds no input"):
        Standard.fit(toy.table(5).subset([]))
    table = toy.table(5)
    table.group_names["pixels"] = tuple(reversed(table.group_names["pixels"]))
    with pytest.raises(ValueError, match="'pixels'"):
        Standard.fit(table)

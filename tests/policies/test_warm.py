from dataclasses import replace

import numpy as np
import pytest
import torch

from foveate.envs.episode import Terms
from foveate.plans import STAGES, ActionTable, Portfolio
from foveate.policies.evaluate import evaluate
from foveate.policies.learned import StagePolicy, best_actions, columns_at
from foveate.policies.staged import Staged
from foveate.policies.train import TrainConfig, build
from foveate.policies.warm import WarmRecipe, _Cascade, clone
from foveate.rollouts.table_env import TableVecEnv

TERMS = Terms((0.2, 2.0), (0.1, 1.0), budget_share=0.3)


class Knows:
    """Knows what is right from what is seen: at the start coarse from the rest, later every kind."""

    name, flops = "knows", 0

    def __init__(self, toy):
        self.cost, self.right = toy.SHARES, toy.RIGHT

    def predict(self, table, groups):
        if "encoder" in groups:
            return table.correct.astype(np.float32)
        rest = self.right[1:].mean(axis=0)
        return np.where(table.correct[:, 2:3], self.right[0], rest).astype(np.float32)


@pytest.fixture(scope="module")
def cloned(toy):
    table = toy.table(1000)
    model = build(table, TrainConfig(groups=2, k=2, widths=(48,)), TERMS.lam)
    recipe = WarmRecipe(epochs=60, batch=512, temperature=0.03)
    losses = clone(model.policy, Knows(toy), table, ActionTable.from_portfolio(toy.PORTFOLIO), TERMS, recipe)
    return model.policy, losses


def test_the_copy_decides_as_the_cascade_does(cloned, toy):
    policy, losses = cloned
    test = toy.table(300, seed=2)
    standard = policy.standard
    actions = ActionTable.from_portfolio(toy.PORTFOLIO)
    copy = StagePolicy(policy.export(), standard.normalisation, standard.layout, actions)
    lams = [0.3, 0.7, 1.5]
    for mine, theirs in zip(evaluate(copy, test, lams), evaluate(Staged(Knows(toy)), test, lams), strict=True):
        assert (mine.plan == theirs.plan).mean() > 0.93
    assert losses[-1] < 0.5 * losses[0]


def test_its_critics_know_what_following_the_cascade_gives(cloned, toy):
    policy, _ = cloned
    free, bound = (
        TableVecEnv(toy.table(300, seed=2), terms=Terms((0.3, 0.3), (0.4, 0.4), share), groups=100, k=1).reset()
        for share in (0.0, 1.0)
    )
    with torch.no_grad():
        values = [policy.predict_values({k: torch.from_numpy(v) for k, v in obs.items()}) for obs in (free, bound)]
    assert values[0].mean(dim=0).tolist() == pytest.approx([1.0, 0.385], abs=0.06)
    # within 0.4 neither fastv nor the uncompressed plan can be had: fine inputs end with visionzip, which is wrong
    assert values[1].mean(dim=0).tolist() == pytest.approx([2 / 3, (0.2 + 0.3 + 0.3) / 3], abs=0.1)


def test_the_copy_keeps_to_the_cascade_under_a_hard_budget(cloned, toy):
    policy, _ = cloned
    table = toy.table(300, seed=2)
    env = TableVecEnv(table, terms=Terms((0.3, 0.3), (0.4, 0.4), 1.0), groups=100, k=1)
    obs, ended = env.reset(), []
    for _ in range(4):
        obs, _, _, infos = env.step(policy.predict(obs, deterministic=True)[0])
        ended += [info for info in infos if info]
    assert np.mean([info["correct"] for info in ended]) > 0.62


@pytest.mark.parametrize("left_out", [{"input": {"downsample": [0.25]}}, {"prefill": {"fastv": [0.5]}}, {"input": {}}])
def test_plans_that_the_portfolio_lacks_are_never_copied(toy, left_out):
    """A table always holds the blind plan, and under a budget it may be the only one within it."""
    stages = {stage: some for stage, some in {**toy.PORTFOLIO.to_dict()["stages"], **left_out}.items() if some}
    table = toy.table(60)
    table = replace(table, meta={**table.meta, "portfolio": {**toy.PORTFOLIO.to_dict(), "stages": stages}})
    actions = ActionTable.from_portfolio(Portfolio.from_dict(table.meta["portfolio"]))
    policy = build(table, TrainConfig(groups=2, k=2, widths=(16,)), TERMS.lam).policy
    cascade = _Cascade(table, Knows(toy), actions, policy)
    rows = np.arange(len(cascade.places) * table.n)
    lams, budgets = np.full(len(rows), 5.0), np.where(rows % 2, 0.1, np.inf)
    obs, target, returns = cascade.batch(rows, lams, budgets, temperature=0.05)
    assert torch.allclose(target.sum(dim=(1, 2)), torch.ones(len(rows)))
    assert (obs["mask"] > 0).any(dim=(1, 2)).all() and not target[obs["mask"] == 0].any()
    offered = {column for stage in STAGES for column in columns_at(table, actions, stage).ravel().tolist()} - {-1}
    assert set(returns[:, 1].tolist()) <= set(toy.SHARES[sorted(offered)].astype(np.float32).tolist())
    losses = clone(policy, Knows(toy), table, actions, Terms((0.2, 2.0), (0.05, 0.1), 1.0), WarmRecipe(epochs=2))
    assert np.isfinite(losses).all()


def test_actions_and_columns_of_a_stage(toy):
    table, actions = toy.table(4), ActionTable.from_portfolio(toy.PORTFOLIO)
    columns = columns_at(table, actions, "prefill")
    row = actions.methods.index(("prefill", "fastv"))
    assert columns[0, 0] == 0
    assert dict(zip(actions.ratios, columns[row].tolist(), strict=True)) == {1.0: -1, 0.5: 4, 0.25: 5, 0.0: -1}
    assert (columns >= 0).sum() == 3


def test_best_actions_respect_the_mask():
    method = np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    ratio = np.array([[[9.0, 1.0], [5.0, 6.0], [0.0, 1.0]]] * 2)
    mask = np.array([[True, False], [False, False], [True, False]])
    m, r = best_actions(method, ratio, mask)
    assert (m.tolist(), r.tolist()) == ([2, 0], [0, 0])

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from foveate.envs.episode import Terms
from foveate.plans import ActionTable
from foveate.policies.evaluate import evaluate
from foveate.policies.learned import StagePolicy
from foveate.policies.ppo import GroupPPO, falling
from foveate.policies.regression import PlanRegression, Recipe
from foveate.policies.rivals import Oracle
from foveate.policies.staged import Staged
from foveate.policies.standard import Standard
from foveate.policies.train import TrainConfig, terms_of
from foveate.policies.train import build as build_model
from foveate.policies.warm import WarmRecipe, clone
from foveate.rollouts.table_env import TableVecEnv


def build(toy, seed=0, groups=16, n=400, budget_share=0.0, **options):
    table = toy.table(n)
    env = TableVecEnv(table, toy.PORTFOLIO, Terms(lam=(0.3, 1.0), budget_share=budget_share), groups, k=8)
    options = {"n_steps": 18, "batch_size": 512, "learning_rate": falling(5e-3), "ent_coef": 0.02} | options
    model = GroupPPO(env, policy_kwargs={"widths": (32,), "standard": Standard.fit(table)}, seed=seed, **options)
    model.set_logger(Logger(None, [Lines()]))
    return model


class Stop(BaseCallback):
    """Breaks a training off before its update number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_rollout_start(self):
        if self.model.update == self.at:
            raise KeyboardInterrupt

    def _on_step(self):
        return True


class Lines(KVWriter):
    """Keeps what is logged."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))

    def close(self): ...


def learn(model, until, total=None):
    """The updates up to number `until` of a training of `total`."""
    left = (total or until) * model.n_steps * model.n_envs - model.num_timesteps
    try:
        return model.learn(left, Stop(until), reset_num_timesteps=False)
    except KeyboardInterrupt:
        return model


def stage_policy(model, toy):
    standard = model.policy.standard
    actions = ActionTable.from_portfolio(toy.PORTFOLIO)
    return StagePolicy(model.policy.export(), standard.normalisation, standard.layout, actions)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.fixture(scope="module")
def learnt(toy):
    return learn(build(toy), 40)


def test_the_known_optimum_is_learnt(learnt, toy):
    test = toy.table(300, seed=2)
    best = evaluate(Oracle(), test, [0.3, 1.0])
    for outcome, limit in zip(evaluate(stage_policy(learnt, toy), test, [0.3, 1.0]), best, strict=True):
        assert outcome.accuracy > 0.97
        assert outcome.reward > limit.reward - 0.04


def test_the_exported_policy_and_the_environment_agree_on_reward(learnt, toy):
    """The offline evaluation gives what deterministic episodes in the environment give."""
    table = toy.table(60, seed=3)
    env = TableVecEnv(table, toy.PORTFOLIO, Terms(lam=(0.5, 0.5), budget_share=0.0), groups=30, k=1)
    outcome = evaluate(stage_policy(learnt, toy), table, [0.5])[0]
    row = {name: i for i, name in enumerate(table.ids.tolist())}
    obs, ended = env.reset(), 0
    for _ in range(6):
        obs, _, dones, infos = env.step(learnt.policy.predict(obs, deterministic=True)[0])
        for info in (info for info, done in zip(infos, dones, strict=True) if done):
            ended += 1
            assert info["column"] == outcome.plan[row[info["input"]]]
    assert ended > 30


def test_a_hard_budget_is_kept(toy):
    model = build(toy, groups=8, budget_share=1.0)
    learn(model, 2)
    env = model.get_env()
    obs = env.reset()
    for _ in range(12):
        obs, _, _, infos = env.step(model.policy.predict(obs, deterministic=False)[0])
        assert all(info["cost"] <= info["budget"] + 1e-6 for info in infos if info)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(toy):
    one, two, other = (learn(build(toy, seed, groups=4, n=60), 2) for seed in (5, 5, 6))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_a_resumed_training_continues_the_same_numbers(toy, tmp_path):
    straight = learn(build(toy, groups=4, n=60), 5)
    first = learn(build(toy, groups=4, n=60), 2, total=5)
    first.checkpoint(tmp_path / "a.pt", {"note": [1, 2.5]})
    second = build(toy, seed=99, groups=4, n=60)
    torch.manual_seed(123)
    assert second.restore(tmp_path / "a.pt") == {"note": [1, 2.5]}
    assert second.update == 2
    learn(second, 5)
    assert second.update == straight.update == 5
    assert torch.equal(weights(second), weights(straight))
    assert second.rollout_buffer.scale == straight.rollout_buffer.scale


def test_a_damaged_or_foreign_checkpoint_is_named(toy, tmp_path):
    model = build(toy, groups=2, n=30)
    model.checkpoint(tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut.pt: not a checkpoint"):
        model.restore(tmp_path / "cut.pt")
    torch.save({"policy": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: not a checkpoint"):
        model.restore(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError):
        model.restore(tmp_path / "none.pt")
    assert not list(tmp_path.glob("*.part"))


def test_the_log_holds_the_numbers_of_an_update(toy):
    model = build(toy, groups=4, n=60)
    learn(model, 2)
    logged = model.logger.output_formats[0].rows[1]  # of the second update's rollouts and the first one's steps
    assert logged["train/epochs"] >= 1
    assert 0 < logged["rollout/cost_share"] < 1 and 0 < logged["rollout/quality"] < 1
    assert np.isfinite([logged[f"train/{k}"] for k in ("approx_kl", "entropy", "policy_loss", "value_loss")]).all()


def test_an_anchor_holds_the_policy_where_it_was(toy):
    moved = []
    for coefficient in (0.0, 100.0):
        model = build(toy, groups=4, n=60, anchor_coef=coefficient, target_kl=None)
        start = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.set_anchor(start)
        learn(model, 3)
        obs = {k: torch.from_numpy(v) for k, v in model.get_env().reset().items()}
        there = model.anchor.get_distribution(obs)
        moved.append(model.policy.get_distribution(obs).divergence(there).mean().item())
    assert moved[0] > 5 * moved[1] > 0
    assert all(torch.equal(value, start[name]) for name, value in model.anchor.state_dict().items())


def test_an_update_stops_where_the_policy_has_moved_too_far(toy):
    model = build(toy, groups=4, n=60, target_kl=1e-9, n_epochs=8, batch_size=64)
    learn(model, 2)
    assert model.logger.output_formats[0].rows[1]["train/epochs"] == 0


def waiting_pays(toy, seed):
    """Two kinds that only the prefill stop tells apart, and a mediocre plan that must be taken before that."""
    table = toy.table(600, seed=seed)
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=600)
    correct = np.zeros((600, 6), bool)
    correct[:, 0] = True
    correct[:, 2] = rng.random(600) < 0.6
    correct[np.arange(600), 4 + kind] = True
    for group in ("pixels", "encoder"):
        table.groups[group][:] = rng.random(table.groups[group].shape)
    table.groups["layer1"][:, 2] = 2.0 * kind - 1
    cost = table.full[:, None] * np.array([1.0, 0.05, 0.2, 0.45, 0.4, 0.4])
    return replace(table, correct=correct, prob=correct.astype(np.float32), cost=cost)


def test_it_learns_to_wait_where_a_cascade_does_not(toy):
    """Before the kinds can be told apart either late plan looks worse than the mediocre early one."""
    train, test = waiting_pays(toy, 0), waiting_pays(toy, 1)
    lam, actions = (0.7, 0.7), ActionTable.from_portfolio(toy.PORTFOLIO)
    regression = PlanRegression(train, waiting_pays(toy, 2), Recipe(members=2, width=24, epochs=20))
    cascade = evaluate(Staged(regression), test, lam[:1])[0]
    assert cascade.reward < 0.6  # the early plan gives 0.6 - 0.7 * 0.2, waiting 1.0 - 0.7 * 0.4
    config = TrainConfig(groups=16, k=8, n_steps=18, n_epochs=4, batch_size=512, widths=(32,), b=0.0)
    config = replace(config, learning_rate=2e-3, budget_share=0.0)
    model = build_model(train, config, lam)
    model.set_logger(Logger(None, []))
    clone(model.policy, regression, train, actions, terms_of(config, lam), WarmRecipe(epochs=10, temperature=0.05))
    assert evaluate(stage_policy(model, toy), test, lam[:1])[0].reward < 0.6
    learn(model, 30)
    assert evaluate(stage_policy(model, toy), test, lam[:1])[0].reward > 0.69

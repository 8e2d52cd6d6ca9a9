from dataclasses import replace

import numpy as np
import pytest

from foveate.controller import Controller, Progress, load
from foveate.plans import STAGES, ActionTable
from foveate.policies.export import artefact_of, export, portfolio_of
from foveate.policies.learned import StagePolicy, columns_at
from foveate.policies.regression import PlanRegression, Recipe
from foveate.policies.staged import Staged
from foveate.policies.train import TrainConfig, build
from foveate.policies.views import spent_at, stops
from foveate.rollouts.table_env import TableVecEnv

CALIBRATION = ((0.1, 0.6), (1.0, 0.4), (5.0, 0.1))


@pytest.fixture(scope="module")
def stage_wise(toy):
    table = toy.table(100)
    return table, build(table, TrainConfig(groups=2, k=2, widths=(16,)), (0.1, 5.0)).policy


def test_a_controller_takes_the_decisions_of_the_offline_policy(stage_wise, toy, tmp_path):
    table, policy = stage_wise
    export(tmp_path / "p.fov", artefact_of(policy.export(), policy.standard, table, CALIBRATION))
    controller = Controller.load(tmp_path / "p.fov", fingerprint="0" * 64)
    actions = ActionTable.from_portfolio(toy.PORTFOLIO)
    standard = policy.standard
    offline = StagePolicy(policy.export(), standard.normalisation, standard.layout, actions)
    chosen = offline.choose(table, [0.3])[0]
    for i in range(30):
        plan = 0
        for stage, groups in stops(table.plans).items():
            seen = {name: table.groups[name][i] for name in groups}
            mask, progress = actions.legal(stage), Progress(spent=float(spent_at(table, stage)[i]))
            decision = controller.decide_stop(stage, seen, progress, mask, lam=0.3)
            assert decision.reason == "policy"
            plan = columns_at(table, actions, stage)[decision.method, decision.ratio]
            if plan:
                break
        assert plan == chosen.plan[i]


def test_a_controller_reads_the_environments_observation_as_it_is(stage_wise, toy, tmp_path):
    table, policy = stage_wise
    export(tmp_path / "p.fov", artefact_of(policy.export(), policy.standard, table, CALIBRATION))
    controller, env = Controller.load(tmp_path / "p.fov"), TableVecEnv(table, groups=12, k=1)
    observation, ended, taken = env.reset(), 0, set()
    for _ in range(8):
        rows = [{name: values[i] for name, values in observation.items()} for i in range(env.num_envs)]
        assert all(env.observation_space.contains(row) for row in rows)
        decisions = [controller.decide(row) for row in rows]
        actions = np.array([(each.method, each.ratio) for each in decisions])
        assert np.array_equal(actions, policy.predict(observation, deterministic=True)[0])
        taken |= set(map(tuple, actions.tolist()))
        observation, _, done, _ = env.step(actions)
        ended += done.sum()
    assert controller.counters == {"policy": 8 * env.num_envs}  # no safe action: nothing was misread
    assert ended > 12 and len(taken) > 1


def test_a_one_shot_controller_takes_the_regressions_decisions(toy, tmp_path):
    table = toy.table(120)
    fitted = PlanRegression(table, toy.table(60, seed=1), Recipe(members=2, width=8, epochs=5))
    artefact = artefact_of(fitted.network, fitted.standard, table, CALIBRATION)
    export(tmp_path / "r.fov", artefact)
    controller = Controller.load(tmp_path / "r.fov")
    chosen = Staged(fitted, ("input",)).choose(table, [0.7])[0]
    for i in range(30):
        seen = {name: table.groups[name][i] for name in ("pixels", "question")}
        decision = controller.decide_stop(STAGES[0], seen, Progress(), np.ones((table.p, 1), bool), lam=0.7)
        assert decision.reason == "regression"
        assert controller.plan(decision) == table.plans[chosen.plan[i]]


def test_the_default_lambda_is_set_for_the_default_budget(stage_wise):
    table, policy = stage_wise
    parts = (policy.export(), policy.standard, table, CALIBRATION)
    assert artefact_of(*parts, budget=0.4).lam == pytest.approx(1.0)
    assert artefact_of(*parts, budget=0.01).lam == pytest.approx(5.0)  # cannot be had: the cheapest end
    with pytest.raises(ValueError, match="nothing is calibrated"):
        artefact_of(policy.export(), policy.standard, table, ())


def test_the_file_says_for_which_host_and_with_which_libraries(stage_wise, tmp_path):
    table, policy = stage_wise
    artefact = artefact_of(policy.export(), policy.standard, table, CALIBRATION, provenance={"seed": 4})
    first, second = (export(tmp_path / f"{i}.fov", artefact) for i in range(2))
    assert first == second
    again = load(tmp_path / "0.fov")
    assert (again.host, again.fingerprint) == ("toy", "0" * 64)
    assert again.provenance["seed"] == 4 and "torch" in again.provenance["libraries"]
    assert again.onnx_sha256 and (tmp_path / "0.onnx").exists()


def test_the_portfolio_comes_from_the_table(toy):
    table = toy.table(4)
    assert portfolio_of(table) == toy.PORTFOLIO
    bare = replace(table, meta={})
    assert portfolio_of(bare).choices == toy.PORTFOLIO.choices
    assert portfolio_of(bare).max_active_stages == 1

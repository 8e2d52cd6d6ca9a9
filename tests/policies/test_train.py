import json
from dataclasses import replace

import numpy as np
import pytest

from foveate.controller import Controller, load
from foveate.policies.evaluate import evaluate
from foveate.policies.regression import Recipe
from foveate.policies.rivals import BestFixed, Oracle
from foveate.policies.train import Splits, TrainConfig, score, train
from foveate.policies.warm import WarmRecipe

SMALL = TrainConfig(
    updates=6,
    groups=8,
    k=4,
    n_steps=12,
    widths=(24,),
    lambdas=5,
    evaluate_every=2,
    lam=(0.2, 2.0),
    regression=Recipe(members=2, width=16, epochs=40, batch=64),
    warm=WarmRecipe(epochs=60, batch=256),
)


@pytest.fixture(scope="module")
def splits(toy):
    return Splits(toy.table(300), toy.table(120, seed=1), toy.table(120, seed=2))


@pytest.fixture(scope="module")
def run(splits, tmp_path_factory):
    out, seen = tmp_path_factory.mktemp("run"), []
    return train(splits, SMALL, out, [seen.append]), out, seen


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"n_steps": 5}, "n_steps: 5 is below 6"),
        ({"groups": 0}, "groups: 0 is below 1"),
        ({"updates": -1}, "updates: -1 is below 0"),
        ({"lambdas": 1}, "lambdas: 1 is below 2"),
        ({"widths": ()}, r"widths: \(\) must hold numbers"),
        ({"lam": (2.0, 0.2)}, r"lam: \(2.0, 0.2\) is not a range"),
        ({"budget_share": 1.5}, "budget_share: 1.5 is outside"),
    ],
)
def test_a_number_out_of_range_is_named_before_anything_runs(fields, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        TrainConfig(**fields)


def test_the_policy_beats_the_best_fixed_plan_on_new_inputs(run, toy):
    trained, _, _ = run
    test = toy.table(300, seed=7)
    mine, fixed, best = (score(evaluate(c, test, trained.lams)) for c in (trained.policy, BestFixed(test), Oracle()))
    assert mine > fixed + 0.5 * (best - fixed)


def test_it_writes_what_ships_and_says_how_it_was_made(run):
    trained, out, _ = run
    files = {path.name for path in out.iterdir()}
    assert {"controller.fov", "policy.fov", "one_shot.fov", "checkpoint.pt", "training.json", "tb"} <= files
    told = json.loads((out / "training.json").read_text())
    assert told["winner"] == trained.winner == "policy"
    assert told["config"]["updates"] == 6 and told["libraries"]["torch"]
    assert load(out / "controller.fov").network.kind == "policy"
    controller = Controller.load(out / "controller.fov", budget=0.6)
    assert trained.lams[0] <= controller.lam <= trained.lams[-1]


def test_the_calibration_was_measured_on_the_calibration_table(run, splits):
    trained, _, _ = run
    expected = [(o.lam, o.cost) for o in evaluate(trained.policy, splits.calibration, trained.lams)]
    assert list(trained.artefacts["policy"].calibration) == expected


def test_the_best_snapshot_by_validation_is_kept(run, splits):
    trained, _, seen = run
    assert [update for update, _ in trained.history] == [0, 2, 4, 6] == [progress.update for progress in seen]
    assert trained.scores["policy"] == pytest.approx(max(value for _, value in trained.history))
    assert seen[-1].table is splits.validation and len(seen[-1].outcomes) == 5


def test_every_rival_is_there_and_scored(run):
    trained, _, _ = run
    names = {"uncompressed", "best fixed plan", "regime line", "random choice", "question-only router"}
    names |= {"nearest neighbours", "forest cascade", "regression cascade", "cloned cascade"}
    assert set(trained.rivals) == names
    assert set(trained.scores) == names | {"policy", "one-shot regression"}
    assert trained.scores["regression cascade"] > trained.scores["best fixed plan"]


def test_a_run_that_was_cut_off_ends_with_the_same_policy(run, splits, tmp_path):
    trained, _, _ = run

    def cut(progress):
        if progress.update == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(splits, SMALL, tmp_path, [cut])
    again = train(splits, SMALL, tmp_path, resume=True)
    assert again.history == trained.history
    for name, array in trained.policy.network.arrays.items():
        np.testing.assert_array_equal(array, again.policy.network.arrays[name])
    np.testing.assert_array_equal(
        again.rivals["cloned cascade"].network.arrays["method.weight"],
        trained.rivals["cloned cascade"].network.arrays["method.weight"],
    )


def test_splits_that_share_a_scene_are_refused(toy):
    table = toy.table(40)
    with pytest.raises(ValueError, match="is in train and in validation"):
        Splits(table, table, toy.table(20, seed=1))
    with pytest.raises(ValueError, match="calibration holds no input"):
        Splits(table, toy.table(20, seed=1), table.subset([]))
    other = toy.table(20, seed=1)
    fewer = {name: getattr(other, name)[:, :-1] for name in ("correct", "prob", "cost", "tokens", "kv")}
    other = replace(other, plans=other.plans[:-1], **fewer)
    with pytest.raises(ValueError, match="other plans"):
        Splits(table, other, toy.table(20, seed=2))


def test_one_table_is_cut_by_family(toy):
    table = toy.table(600)
    cut = Splits.of(table)
    assert cut.train.n + cut.validation.n + cut.calibration.n == 600
    assert 0.6 < cut.train.n / 600 < 0.8

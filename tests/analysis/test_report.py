import csv

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foveate.analysis.board import Board
from foveate.analysis.figures import choice_map, cost_against_lambda, pareto, save
from foveate.analysis.report import Report
from foveate.policies.evaluate import Chosen, calibrate, evaluate, front
from foveate.policies.rivals import BestFixed, RandomChoice, RegimeLine
from foveate.policies.train import Progress, score

LAMS = list(np.geomspace(0.1, 5.0, 7))


class Knows:
    """Takes the best plan of each kind at each lambda."""

    name = "policy"

    def choose(self, table, lams):
        return [Chosen(np.argmax(table.correct - lam * table.share, axis=1), 0.001 * table.full) for lam in lams]


@pytest.fixture(scope="module")
def report(toy):
    train, held, test = toy.table(300), toy.table(100, seed=1), toy.table(300, seed=2)
    calibration = calibrate(evaluate(Knows(), held, LAMS))
    rivals = [RegimeLine(train), BestFixed(train), RandomChoice()]
    return Report.of(train, test, Knows(), calibration, rivals, (0.05, 0.3, 0.5), resamples=100), test


def test_the_text_names_every_row_and_regime(report):
    text = report[0].text()
    names = ("uncompressed", "best fixed plan", "hull of fixed plans", "regime line", "permuted policy", "naive oracle")
    for name in names:
        assert sum(line.startswith(name) for line in text.splitlines()) == 1
    assert "300 test inputs of 150 scene families, 6 plans" in text
    assert text.count("  even ") == text.count("  odd ") == 3


def test_rivals_stand_at_the_policys_own_cost(report):
    rows = dict(report[0].rows())
    for name in ("hull of fixed plans", "regime line", "random choice", "naive oracle"):
        assert [cost for cost, _ in rows[name]] == [cost for cost, _ in rows["policy"]]
    assert rows["uncompressed"] == [(1.0, 1.0)] * 3


def test_the_policy_keeps_the_budget_by_its_calibration_and_gains(report):
    middle = report[0].columns[1]
    assert 0.15 < middle.outcome.cost < 0.32  # the oracle's cost jumps: the dial stays on the safe side
    assert middle.over_hull.low > 0.1 and middle.over_regime.low > 0.1
    assert middle.permuted.drop.low > 0.2
    assert middle.saved > 0.15
    assert report[0].closed > 0.95


def test_a_budget_that_cannot_be_had_is_read_at_the_cheap_end(report):
    assert report[0].columns[0].outcome.lam == pytest.approx(5.0)


def test_the_best_fixed_plan_fits_into_the_cost(report):
    label, cost, _ = report[0].columns[1].best_fixed
    assert label == "outside:visionzip@0.25" if report[0].columns[1].outcome.cost >= 0.3 else "input:downsample@0.25"
    assert cost <= report[0].columns[1].outcome.cost + 1e-9


def test_the_files_hold_the_numbers(report, tmp_path):
    report[0].write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.txt", "table.csv", "fronts.csv", "choices.csv", "pareto.png", "cost_against_lambda.png"),
        *("choices_0.05.png", "choices_0.3.png", "choices_0.5.png"),
    }
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["name"] == "policy" and row["budget"] == "0.3"]
    assert float(mine[0]["accuracy"]) == pytest.approx(report[0].columns[1].outcome.accuracy, abs=1e-5)
    with open(tmp_path / "choices.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["budget"], row["regime"]) == ("0.3", "odd")]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1.0, abs=1e-4)
    assert (tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"


def test_train_and_test_must_not_share_scenes(toy):
    table = toy.table(40)
    with pytest.raises(ValueError, match="share 20 scene families"):
        Report.of(table, table, Knows(), ((1.0, 0.4),))


def test_the_same_content_gives_the_same_picture(toy, tmp_path):
    table = toy.table(50)
    for name in ("a", "b"):
        save(pareto(table, None, {"policy": front(evaluate(Knows(), table, LAMS))}), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_figures_show_what_they_are_given(toy):
    table = toy.table(50)
    axes = choice_map({"even": {"none": 0.25, "prefill:fastv": 0.75}, "odd": {"none": 1.0}}).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["prefill:fastv", "none"]
    assert axes.images[0].get_array().tolist() == [[75.0, 25.0], [0.0, 100.0]]
    drawn = cost_against_lambda(evaluate(Knows(), table, LAMS)).axes[0].lines[0]
    assert list(drawn.get_xdata()) == LAMS


def test_the_board_holds_outcome_decision_and_comparison(toy, tmp_path):
    train, table = toy.table(200), toy.table(100, seed=1)
    board = Board(tmp_path, train)
    for update in (0, 10):
        outcomes = evaluate(Knows(), table, LAMS)
        board(Progress(update, 10, outcomes, table, score(outcomes)))
    board.finish({"seed": 0, "widths": (64, 64)}, {"score": 0.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    names = set(tags["scalars"])
    assert {"validation/score", "validation/area_above_hull", "validation/gap_closed", "kept/p50"} <= names
    assert {"regime/odd/accuracy", "regime/even/cost"} <= names
    assert {"method/prefill:fastv", "method_in/odd/outside:visionzip"} <= names
    assert f"cost/{LAMS[0]:.3g}" in names
    assert set(tags["images"]) == {"pareto", "cost_against_lambda", "choices"}
    assert [e.step for e in events.Scalars("validation/score")] == [0, 10]
    assert events.Scalars("validation/gap_closed")[0].value > 0.95
    assert events.Scalars("validation/lambda_inversions")[0].value == 0
    assert events.Scalars("final/score")[0].value == 0.5
    methods = sum(events.Scalars(name)[0].value for name in names if name.startswith("method/"))
    assert methods == pytest.approx(1.0)
    assert "custom_scalars__config__" in tags["tensors"]

"""The user's own videos through replay, bench, train and run, small, on a tiny model with random weights."""

from __future__ import annotations

import csv
import json

import pytest
from filming import write_film

from foveate.plans.plan import Choice
from foveate.plans.portfolio import Portfolio
from foveate.tasks.registry import regime_sample

PLANS = """version: 1
name: films
max_active_stages: 1
stages:
  input: {frames: [0.5]}
  outside: {visionzip: [0.5]}
  projector: {meteor: [0.5]}
"""
TRAIN = """version: 1
seed: 3
model: {{name: {folder}}}
data: {{jsonl: {jsonl}}}
portfolio: {portfolio}
policy: {{updates: 2, groups: 4, k: 2, n_steps: 6, lambdas: 3, widths: [8], evaluate_every: 1}}
out: {out}
"""


@pytest.fixture(scope="module")
def films(serving, tmp_path_factory):
    """Thirty questions about four videos of different lengths, shown by four frames, and a portfolio for them."""
    folder = tmp_path_factory.mktemp("films")
    for film in range(4):
        pictures = [serving.tiny.picture(10 * film + seed, 32, 48) for seed in range(5 + film)]
        write_film(folder / f"{film}.mkv", pictures)
    asked = {"question": "is the thing red or blue ?", "answers": ["red"], "frames": 4}
    rows = [{"video": f"{i % 4}.mkv", "family": f"f{i}", **asked} for i in range(30)]
    (folder / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "films.yaml").write_text(PLANS)
    return folder


def test_videos_are_replayed_and_benched_with_methods_of_their_own(call, folder, films, tmp_path):
    data = ["--model", folder, "--data", films / "films.jsonl", "--n", 3]
    got = call("replay", *data, "--portfolio", films / "films.yaml", "--out", tmp_path / "t.parquet")
    assert got.status == 0, got.err
    for label in ("none", "blind", "input:frames@0.5", "outside:visionzip@0.5", "projector:meteor@0.5"):
        assert any(line.startswith(label) for line in got.out.splitlines()), label
    argv = ["--stages", "projector", "--methods", "meteor", "--ratios", "0.5", "--rounds", 0]
    got = call("bench", *data, *argv, "--out", tmp_path / "bench")
    assert got.status == 0, got.err
    rows = {row["plan"]: row for row in csv.DictReader((tmp_path / "bench" / "bench.csv").open())}
    assert {"input:frames@0.5", "input:downsample@0.5", "projector:meteor@0.5"} <= set(rows)
    assert float(rows["none"]["tokens"]) == 64 and float(rows["input:frames@0.5"]["tokens"]) == 32


def test_a_controller_that_is_trained_on_videos_decides_on_them(call, folder, films, tmp_path):
    from foveate.controller import load

    settings = {"folder": folder, "jsonl": films / "films.jsonl", "portfolio": films / "films.yaml"}
    (tmp_path / "train.yaml").write_text(TRAIN.format(**settings, out=tmp_path / "run"))
    got = call("train", tmp_path / "train.yaml")
    assert got.status == 0, got.err
    controller = tmp_path / "run" / "controller.fov"
    assert load(controller).layout.video
    asked = ["--video", films / "0.mkv", "--frames", 4, "--question", "is the thing red or blue ?"]
    found = json.loads(call("run", *asked, "--model", folder, "--controller", controller, "--json").out)
    assert found["reason"] in ("policy", "regression"), "what it was trained on is known ground"


def test_the_video_model_brings_a_controller_that_decides_for_videos(call, tmp_path):
    sample = regime_sample("slides", "test", 3)
    path = write_film(tmp_path / "clip.mkv", sample.clip.frames)
    turn, offers = sample.turns[1], Portfolio.from_yaml("videos").choices
    asked = ["--model", "reference-video", "--video", path, "--question", turn.question]
    found = json.loads(call("run", *asked, "--frames", 8, "--budget", 0.35, "--json").out)
    assert found["answer"] in turn.answers
    assert found["reason"] == "regression", "the controller that won in validation decides, and falls back on nothing"
    assert found["plan"] and all(Choice(**choice) in offers[stage] for stage, choice in found["plan"].items())

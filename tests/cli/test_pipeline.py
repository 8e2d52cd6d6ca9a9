"""replay, bench, train and export, small, on a tiny model with random weights; then the gate on what came out."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

PLANS = """version: 1
name: two
max_active_stages: 1
stages:
  input: {blind: [0.0]}
  outside: {random: [0.25]}
  prefill: {fastv: [0.5]}
"""
TRAIN = """version: 1
seed: 3
model: {{name: {folder}}}
data: {{tasks: [scenes], train: 12, validation: 6, calibration: 6}}
portfolio: {portfolio}
policy: {{updates: 2, groups: 4, k: 2, n_steps: 6, lambdas: 3, widths: [8], evaluate_every: 1}}
out: {out}
"""


@pytest.fixture(scope="module")
def portfolio(tmp_path_factory):
    path = tmp_path_factory.mktemp("portfolio") / "two.yaml"
    path.write_text(PLANS)
    return path


@pytest.fixture
def jsonl(tmp_path, photo):
    """Two good rows of the user's own data."""
    (tmp_path / "a.png").write_bytes(photo.read_bytes())
    rows = [{"image": "a.png", "question": f"what is this {i} ?", "answers": ["red"]} for i in range(2)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path, serving):
    """Thirty questions about two pictures of different sizes, and one about a single picture."""
    for i in range(8):
        Image.fromarray(serving.tiny.picture(i, 32 + 8 * i, 48)).save(tmp_path / f"{i}.png")
    asked = {"question": "is the thing red or blue ?", "answers": ["red"]}
    rows = [{"images": [f"{i % 8}.png", f"{i // 8}.png"], **asked} for i in range(30)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"image": "0.png", **asked}]))
    return path


@pytest.fixture(scope="module")
def run(folder, portfolio, tmp_path_factory):
    """A finished training: its folder, and the configuration file."""
    from foveate.cli.main import main

    out = tmp_path_factory.mktemp("train") / "run"
    config = out.parent / "train.yaml"
    config.write_text(TRAIN.format(folder=folder, portfolio=portfolio, out=out))
    assert main(["train", str(config)]) == 0
    return out, config


class TestReplay:
    def test_a_table_of_the_users_own_data_is_filled_and_reported(self, call, folder, portfolio, jsonl, tmp_path):
        from foveate.rollouts.table import Table

        argv = [
            "replay",
            "--model",
            folder,
            "--portfolio",
            portfolio,
            "--jsonl",
            jsonl,
            "--out",
            tmp_path / "t.parquet",
        ]
        got = call(*argv)
        table = Table.load(tmp_path / "t.parquet")
        assert got.status == 0 and (table.n, table.p) == (2, 4)
        labels = ["none", "blind", "outside:random@0.25", "prefill:fastv@0.5"]
        assert [plan.label() for plan in table.plans][:2] == labels[:2]
        assert all(any(line.startswith(label) for line in got.out.splitlines()) for label in labels)
        assert "2 inputs x " in got.out
        assert call(*argv).out == got.out, "a second call does nothing anew"

    def test_a_row_without_its_file_is_one_line_with_file_and_number(self, call, folder, portfolio, jsonl, tmp_path):
        lines = jsonl.read_text().splitlines()
        lines[1] = lines[1].replace("a.png", "gone.png")
        jsonl.write_text("\n".join(lines))
        argv = ["--model", folder, "--portfolio", portfolio, "--jsonl", jsonl, "--out", tmp_path / "t.parquet"]
        assert call("replay", *argv).refused("replay", "mine.jsonl:2", "gone.png")
        assert not (tmp_path / "t.parquet").exists()
        kept = call("replay", *argv, "--skip-bad")
        assert kept.status == 0 and "mine.jsonl:2" in kept.err and "1 inputs x" in kept.out

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--tasks", "scnes"], ["scnes", "scenes"]),
            (["--n", "0"], ["n: 0"]),
            (["--portfolio", "tinny"], ["tinny", "tiny"]),
            (["--jsonl", "/gone.jsonl"], ["/gone.jsonl"]),
        ],
    )
    def test_what_cannot_be_is_one_line(self, call, folder, tmp_path, argv, words):
        assert call("replay", "--model", folder, "--out", tmp_path / "t.parquet", *argv).refused("replay", *words)

    def test_an_unknown_method_and_an_impossible_ratio_in_a_portfolio_have_their_line(self, call, folder, tmp_path):
        path = tmp_path / "bad.yaml"
        for text, words in (
            ("stages:\n  outside: {visonzip: [0.5]}\n", ["bad.yaml:4", "visonzip", "visionzip"]),
            ("stages:\n  outside: {visionzip: [1.5]}\n", ["bad.yaml:4", "1.5"]),
        ):
            path.write_text("version: 1\nname: bad\n" + text)
            argv = ["--model", folder, "--portfolio", path, "--out", tmp_path / "t.parquet"]
            assert call("replay", *argv).refused("replay", *words)

    def test_another_table_in_its_place_is_left_alone(self, call, folder, portfolio, jsonl, tmp_path):
        argv = ["--model", folder, "--portfolio", portfolio, "--out", tmp_path / "t.parquet"]
        assert call("replay", *argv, "--jsonl", jsonl).status == 0
        before = (tmp_path / "t.parquet").read_bytes()
        got = call("replay", *argv, "--tasks", "scenes", "--n", 2)
        assert got.status == 2 and "t.parquet" in got.err.splitlines()[-1]
        assert (tmp_path / "t.parquet").read_bytes() == before


class TestBench:
    def test_a_table_a_csv_file_and_a_picture_come_out(self, call, folder, tmp_path):
        argv = [
            "--stage",
            "outside,decode",
            "--methods",
            "diversity",
            "--ratios",
            "0.25",
            "--tasks",
            "scenes",
            "--n",
            2,
        ]
        argv += ["--out", tmp_path / "bench", "--markdown", tmp_path / "docs" / "bench.md"]
        got = call("bench", "--model", folder, *argv, "--rounds", 1)
        assert got.status == 0, got.err
        names = ("input:downsample", "outside:random", "outside:random_renumbered", "outside:stride")
        controls = [f"{name}@0.25" for name in names]
        plans = ["none", *controls, "outside:diversity@0.25", "decode:random@0.25", "blind"]
        rows = list(csv.DictReader((tmp_path / "bench" / "bench.csv").open()))
        assert [row["plan"] for row in rows] == plans
        assert [row["gain"] != "" for row in rows] == [False, True, False, True, True, True, False, False]
        page = (tmp_path / "docs" / "bench.md").read_text()
        assert "foveate bench --model" in page and "--stage outside,decode" in page and "counting 2" in page
        outside, decode = page.split("\n## ")[1:]
        assert "| outside:diversity@0.25 |" in outside and "| decode:" not in outside
        assert "| decode:random@0.25 |" in decode and "diversity" not in decode and "| blind |" in decode
        assert float(rows[0]["flops_share"]) == 1 and float(rows[-1]["tokens"]) == 0
        assert all(float(row["wall_share"]) > 0 for row in rows)
        shares = [f"{what}_share_b{batch}" for batch in (1, 16) for what in ("first", "token")]
        timed = [[float(row[share] or 0) > 0 for share in shares] for row in rows]
        assert timed == [[row["plan"] != "outside:diversity@0.25"] * 4 for row in rows]
        none, kept = rows[0], rows[plans.index("decode:random@0.25")]
        assert kept["kv_prefill_bytes_b1"] == none["kv_prefill_bytes_b1"]
        assert 0 < float(kept["kv_end_bytes_b16"]) < float(none["kv_end_bytes_b16"])
        assert "token, b 16" in decode and "token, b 16" not in outside and "token, b 16" in got.out
        assert all(f"| {plan} |" in got.out for plan in plans)
        assert Image.open(tmp_path / "bench" / "bench.png").format == "PNG"

    def test_questions_about_two_pictures_are_benched(self, call, folder, pairs, tmp_path):
        argv = ["--stages", "outside,prefill", "--methods", "random,fastv", "--ratios", "0.5", "--n", 4]
        got = call("bench", "--model", folder, *argv, "--data", pairs, "--rounds", 1, "--out", tmp_path / "bench")
        assert got.status == 0, got.err
        rows = {row["plan"]: row for row in csv.DictReader((tmp_path / "bench" / "bench.csv").open())}
        names = ("input:downsample", "outside:random", "outside:random_renumbered", "outside:stride")
        controls = [f"{name}@0.5" for name in names]
        own = ["prefill:random@0.5", "prefill:stride@0.5", "prefill:fastv@0.5"]
        assert list(rows) == ["none", *controls, *own, "blind"]
        assert float(rows["none"]["tokens"]) == 32 and float(rows["outside:random@0.5"]["tokens"]) == 16

    def test_a_row_of_several_pictures_that_cannot_be_used_says_what_and_where(self, call, folder, pairs, tmp_path):
        lines = pairs.read_text().splitlines()
        argv = ["bench", "--model", folder, "--stages", "outside", "--methods", "random", "--out", tmp_path / "bench"]
        for change, word in (
            (lambda row: row | {"images": ["0.png", "gone.png"]}, "gone.png"),
            (lambda row: row | {"images": []}, "images is empty"),
            (lambda row: row | {"image": "0.png"}, "either image or images"),
        ):
            wrong = [*lines[:2], json.dumps(change(json.loads(lines[2]))), *lines[3:]]
            pairs.write_text("\n".join(wrong))
            assert call(*argv, "--data", pairs).refused("bench", "pairs.jsonl:3", word)
        marked = json.dumps(json.loads(lines[2]) | {"question": "what is <image> ?"})
        pairs.write_text("\n".join([*lines[:2], marked, *lines[3:]]))
        assert call(*argv, "--data", pairs).refused("bench", "pairs/3", "image token")

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--stages", "outsde"], ["--stages", "outsde", "outside"]),
            (["--methods", "visonzip"], ["--methods", "visonzip", "visionzip"]),
            (["--ratios", "0.5,2"], ["--ratios", "'2'"]),
            (["--ratios", "0.5,half"], ["--ratios", "'half'"]),
            (["--rounds", "-1"], ["--rounds"]),
            (["--batches", "1,0"], ["--batches", "'0'"]),
            (["--batches", "2,2"], ["--batches", "'2'", "twice"]),
        ],
    )
    def test_what_cannot_be_is_one_line(self, call, folder, tmp_path, argv, words):
        assert call("bench", "--model", folder, "--out", tmp_path / "b", *argv).refused("bench", *words)


class TestTrain:
    def test_the_run_holds_the_resolved_configuration_the_tables_and_the_controller(self, run):
        out, _ = run
        saved = json.loads((out / "config.json").read_text())
        assert saved["config"]["seed"] == 3 and saved["config"]["policy"]["updates"] == 2
        assert saved["config"]["rollouts"] == {"workers": 0} and "torch" in saved["versions"]
        names = {path.name for path in out.iterdir()}
        assert names >= {
            "train.parquet",
            "validation.parquet",
            "calibration.parquet",
            "controller.fov",
            "checkpoint.pt",
        }

    def test_a_folder_with_a_training_is_gone_on_with_only_when_asked(self, run, call):
        out, config = run
        assert call("train", config).refused("train", str(out), "--resume")
        before = (out / "controller.fov").read_bytes()
        again = call("train", config, "--resume")
        assert again.status == 0 and str(out / "controller.fov") in again.out
        assert (out / "controller.fov").read_bytes() == before

    def test_questions_about_two_pictures_are_trained_on_and_answered(
        self, run, call, folder, pairs, serving, tmp_path
    ):
        from foveate.models import load_host
        from foveate.rollouts.table import Table
        from foveate.serving.gate import Gate

        out = tmp_path / "pairs"
        got = call("train", run[1], "--data", pairs, "--out", out, "--dtype", "float32", "--device", "cpu")
        assert got.status == 0, got.err
        table = Table.load(out / "inputs.parquet")
        assert table.n == 31 and sorted(set(table.tokens[:, 0].tolist())) == [16, 32]
        gate = Gate(load_host(folder), None, out / "policy.fov")
        pictures = [serving.tiny.picture(i) for i in range(2)]
        assert len(gate.answer([pictures, pictures[0]], ["is the thing red or blue ?"] * 2, 3)) == 2
        assert gate.counters["rows"] == 2 and gate.counters["compressor"] == 0

    def test_the_exported_controller_answers_through_run(self, run, call, folder, photo, tmp_path):
        out, _ = run
        got = call("export", out, "--kind", "policy", "--out", tmp_path / "mine.fov")
        assert got.status == 0 and "SHA-256" in got.out
        argv = [
            "--image",
            photo,
            "--question",
            "what is this ?",
            "--model",
            folder,
            "--controller",
            tmp_path / "mine.fov",
        ]
        found = json.loads(call("run", *argv, "--json").out)
        assert found["reason"] in ("policy", "outside") and found["label"] in (
            "none",
            "blind",
            "outside:random@0.25",
            "prefill:fastv@0.5",
        )

    def test_export_sets_the_default_budget(self, run, tmp_path):
        from foveate.cli.export import export_run
        from foveate.controller import load
        from foveate.controller.dial import lambda_for

        out, _ = run
        calibration = load(out / "controller.fov").calibration
        budget = max(cost for _, cost in calibration)
        export_run(out, tmp_path / "mine.fov", budget=budget)
        assert load(tmp_path / "mine.fov").lam == lambda_for(calibration, budget)

    def test_a_training_that_is_not_there_or_not_done_is_told(self, call, tmp_path):
        assert call("export", tmp_path / "gone", "--out", tmp_path / "a.fov").refused("export", "gone", "not there")
        (tmp_path / "half").mkdir()
        assert call("export", tmp_path / "half", "--out", tmp_path / "a.fov").refused("export", "half", "--resume")

    def test_a_mistake_in_the_configuration_has_its_line(self, call, tmp_path):
        (tmp_path / "bad.yaml").write_text("version: 1\npolicy: {update: 3}\n")
        assert call("train", tmp_path / "bad.yaml").refused("train", "bad.yaml:2", "policy.update", "updates")
        assert call("train", "train_tiy").refused("train", "train_tiy", "train_tiny")

"""The gate judged by the real lmms-eval, on pictures of ours; what needs no harness is tested without it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from foveate.controller.artefact import save
from foveate.models import load_host
from foveate.plans.plan import UNCOMPRESSED
from foveate.serving import lmms
from foveate.serving.gate import Gate, Record
from foveate.serving.lmms_task import graded, write_task
from foveate.tasks.base import Sample, Turn, exact_match
from foveate.tasks.registry import iter_samples


@pytest.fixture(scope="module")
def harness(root: Path) -> str:
    """A Python that has lmms-eval."""
    own = root / ".venv-lmms" / "bin" / "python"
    if own.is_file():
        return str(own)
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("lmms-eval is not installed; `make lmms` installs it")
    return sys.executable


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Three pictures, each with its first two questions."""
    return [replace(s, turns=s.turns[:2]) for s in iter_samples(["scenes", "reading"], "test", 3, 0)]


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    return load_host("reference")


@pytest.fixture(scope="module")
def place(tmp_path_factory, samples, reference, make_artefact) -> Path:
    """A folder with tasks and a controller for the reference model whose plans differ from input to input."""
    place = tmp_path_factory.mktemp("lmms")
    save(place / "controller.fov", make_artefact(None, 1, host=reference.name, fingerprint=reference.fingerprint))
    tasks = place / "tasks"
    text = write_task(tasks, "ours", samples).read_text("utf-8")
    choice = text.replace("task: ours", "task: ours_choice").replace("generate_until", "multiple_choice")
    choice = choice.replace("process_results: !function foveate.serving.lmms_task.graded\n", "")
    choice = choice[: choice.index("generation_kwargs")] + choice[choice.index("metric_list") :]
    choice = choice.replace("exact_match", "acc").replace("doc_to_target: answers", "doc_to_target: 0")
    (tasks / "ours_choice.yaml").write_text(choice + "doc_to_choice: '{{[answers[0], \"yes it is so\"]}}'\n")
    warm = text.replace("task: ours", "task: ours_warm").replace(
        "do_sample: false", "do_sample: true\n  temperature: 1"
    )
    (tasks / "ours_warm.yaml").write_text(warm)
    return place


@pytest.fixture(scope="module")
def environment(place) -> dict[str, str]:
    """Of the harness: its caches in a place of their own, one thread, no hub."""
    own = {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def runs(harness, place, environment) -> dict[str, Any]:
    """Evaluations by the harness, through its Python interface."""
    gate = f"pretrained=reference,controller={place / 'controller.fov'},budget=0.5"
    todo = {
        "simple": {"model_args": gate, "tasks": ["ours"], "batch_size": 4, "force_simple": True},
        "chat": {"model_args": gate, "tasks": ["ours"], "batch_size": 1},
        "plain": {"model_args": "plan=none", "tasks": ["ours"], "batch_size": 4},
        "choice": {"model_args": "plan=none", "tasks": ["ours_choice"], "force_simple": True},
        "warm": {"model_args": "plan=none", "tasks": ["ours_warm"]},
        "neither": {"model_args": "pretrained=reference", "tasks": ["ours"]},
    }
    script = Path(__file__).with_name("lmms_runs.py")
    command = [harness, str(script), str(place / "tasks"), str(place / "runs.json")]
    done = subprocess.run(command, input=json.dumps(todo), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((place / "runs.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def expected(reference, place, samples) -> list[tuple[str, dict[str, Any]]]:
    """Answer and log of each question by the gate in this process."""
    gate, found = Gate(reference, None, place / "controller.fov", budget=0.5), []
    for sample in samples:
        for turn in sample.turns:
            (answer,) = gate.answer([sample.image], [turn.question], 8)
            found.append((answer, json.loads(json.dumps(lmms.logged(gate.last[0])))))
    return found


def by_document(run: dict[str, Any], task: str = "ours") -> list[dict[str, Any]]:
    return sorted(run["samples"][task], key=lambda sample: sample["doc_id"])


class TestRealHarness:
    @pytest.mark.parametrize("form", ["simple", "chat"])
    def test_a_samples_log_holds_what_the_gate_does_by_itself(self, runs, expected, samples, form):
        logs = by_document(runs[form])
        assert len(logs) == len(expected) == 6
        assert len({json.dumps(want["plan"]) for _, want in expected}) > 1  # else the comparison would say little
        for log, (answer, want) in zip(logs, expected, strict=True):
            (counts,) = log["token_counts"]
            assert log["filtered_resps"] == [answer]
            assert counts.pop("output_tokens") >= 1
            assert counts == want
        assert f"lmms.{form.title()} ({form})" in runs[form]["config"]["model_backend"].replace("<locals>.", "")

    @pytest.mark.parametrize("form", ["simple", "chat"])
    def test_accuracy_and_mean_cost_are_those_of_the_same_answers_here(self, runs, expected, samples, form):
        accepted = [turn.answers for sample in samples for turn in sample.turns]
        right = [exact_match(answer, want) for (answer, _), want in zip(expected, accepted, strict=True)]
        assert runs[form]["results"]["ours"]["exact_match,none"] == pytest.approx(np.mean(right))
        for name in ("flops", "flops_share", "visual_tokens"):
            mean = np.mean([want[name] for _, want in expected])
            assert runs[form]["throughput"][f"avg_{name}"] == pytest.approx(mean)

    def test_a_fixed_plan_runs_alike_and_uncompressed_costs_everything(self, runs, reference, samples):
        logs, turns = by_document(runs["plain"]), [(s.image, t.question) for s in samples for t in s.turns]
        for log, (image, question) in zip(logs, turns, strict=True):
            p = reference.open([image], [question]).run(UNCOMPRESSED)
            assert log["filtered_resps"] == p.decode(max_new_tokens=8)
            (counts,) = log["token_counts"]
            assert (counts["plan_label"], counts["plan_by"], counts["flops_share"]) == ("none", "plan", 1.0)
            assert counts["flops"] == p.ledger[0].total and counts["visual_tokens"] == reference.n_visual

    def test_a_multiple_choice_takes_the_likelier_continuation(self, runs, reference, samples):
        turns = [(s.image, t) for s in samples for t in s.turns]
        logs, right = by_document(runs["choice"], "ours_choice"), []
        for log, (image, turn) in zip(logs, turns, strict=True):
            p = reference.open([image], [turn.question]).run(UNCOMPRESSED)
            (score,) = p.score([[turn.answers[0], "yes it is so"]])
            assert [value for value, _ in log["filtered_resps"]] == pytest.approx([-v for v in score.logprob], abs=1e-3)
            assert [greedy for _, greedy in log["filtered_resps"]] == score.greedy
            assert [counts["plan_label"] for counts in log["token_counts"]] == ["none", "none"]
            right.append(score.logprob[0] > score.logprob[1])
        assert runs["choice"]["results"]["ours_choice"]["acc,none"] == pytest.approx(np.mean(right))

    def test_what_cannot_be_judged_is_refused_in_one_line(self, runs):
        assert runs["warm"]["error"] == (
            "ValueError: task 'ours_warm', split 'test', document 0: do_sample = True; answers are judged greedily here"
        )
        assert "needs controller=FILE or plan=NAME" in runs["neither"]["error"]

    def test_the_command_of_the_docs_writes_the_same_log(self, harness, place, environment, expected):
        arguments = f"pretrained=reference,controller={place / 'controller.fov'},budget=0.5"
        command = [harness, "-m", "lmms_eval", "--model", "foveate", "--model_args", arguments, "--include_path"]
        command += [str(place / "tasks"), "--tasks", "ours", "--limit", "2", "--log_samples", "--output_path"]
        done = subprocess.run([*command, str(place / "out")], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (path,) = (place / "out").rglob("*_samples_ours.jsonl")
        logs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [log["filtered_resps"] for log in logs] == [answer for answer, _ in expected[:2]]
        assert [log["token_counts"][0]["flops"] for log in logs] == [want["flops"] for _, want in expected[:2]]
        (results,) = (place / "out").rglob("*_results.json")
        mean = np.mean([want["flops_share"] for _, want in expected[:2]])
        assert json.loads(results.read_text("utf-8"))["throughput"]["avg_flops_share"] == pytest.approx(mean)


class TestWithoutHarness:
    def test_a_task_folder_holds_every_question_with_answers(self, samples, tmp_path):
        label_free = replace(samples[0], turns=(Turn("what is it?", (), "free"),))
        path = write_task(tmp_path, "ours", [*samples, label_free], max_new_tokens=5)
        rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
        turns = [(s, t) for s in samples for t in s.turns]
        assert [(r["question"], r["answers"]) for r in rows] == [(t.question, list(t.answers)) for _, t in turns]
        assert [r["id"] for r in rows][:2] == [f"{samples[0].id}#0", f"{samples[0].id}#1"]
        (tmp_path / "a.png").write_bytes(rows[2]["image"]["bytes"])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), samples[1].image)
        assert "process_results: !function foveate.serving.lmms_task.graded\n" in path.read_text("utf-8")
        with pytest.raises(ValueError, match="none of 1 samples has a question with answers"):
            write_task(tmp_path, "none", [label_free])

    def test_grading_is_the_projects_own(self):
        doc = {"answers": ["12 5", "cup"]}
        assert graded(doc, ["125."]) == {"exact_match": 1.0} and graded(doc, ["a cup"]) == {"exact_match": 0.0}

    def test_a_row_without_a_ledger_is_logged_with_unknown_numbers(self):
        found = lmms.logged(Record(UNCOMPRESSED, "unsupported"))
        assert found["flops"] is found["visual_tokens"] is found["flops_share"] is None
        assert (found["plan"], found["plan_by"]) == ({}, "unsupported")

    def test_an_answer_ends_before_the_first_stop_string(self):
        assert lmms._cut("red. blue\nno", ["\n", ". "]) == "red"
        assert lmms._cut("red", ["\n", ""]) == "red"

    def test_batches_keep_the_order_and_never_mix_limits(self):
        assert list(lmms._batches([8, 8, 8, 16, 8], 2)) == [[0, 1], [2], [3], [4]]

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"temperature": 0.7}, "temperature = 0.7; answers are judged greedily here"),
            ({"num_beams": 4}, "num_beams = 4"),
            ({"max_new_tokens": -1}, "max_new_tokens = -1 is below 1"),
        ],
    )
    def test_settings_beyond_greedy_decoding_are_refused_with_the_document(self, given, said):
        request = SimpleNamespace(args=("what?", given, None, 7, "vqa", "test"))
        with pytest.raises(ValueError, match=rf"task 'vqa', split 'test', document 7: {said}"):
            lmms._settings(request, 16)

    def test_settings_that_say_nothing_leave_the_defaults(self):
        given = {"temperature": 0.0, "do_sample": False, "num_beams": 1, "until": "\n"}
        assert lmms._settings(SimpleNamespace(args=("what?", given, None, 7, "vqa", "test")), 16) == (16, ["\n"])

    def test_messages_become_pictures_and_one_question(self):
        parts = [
            {"type": "image", "url": "a.png"},
            {"type": "text", "text": "look."},
            {"type": "text", "text": "what?"},
        ]
        assert lmms._from_messages([{"role": "user", "content": parts}], "x") == (["a.png"], "look.\nwhat?")
        with pytest.raises(ValueError, match="x: the gate takes one user turn, the task has system, user"):
            lmms._from_messages([{"role": "system", "content": []}, {"role": "user", "content": parts}], "x")
        with pytest.raises(ValueError, match="x: needs pictures and text, has video"):
            lmms._from_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "x")

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({}, "needs controller=FILE or plan=NAME"),
            ({"plan": "none", "controller": "a.fov"}, "not both"),
            ({"plan": "none", "budget": 0.5}, "budget goes with a controller"),
            ({"plan": "none", "batch_size": "auto"}, "batch_size: 'auto' must be a whole number"),
        ],
    )
    def test_model_arguments_that_contradict_each_other_are_named(self, given, said):
        with pytest.raises(ValueError, match=said):
            lmms.Judged(**given)

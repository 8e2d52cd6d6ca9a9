"""`foveate distill`: from a command line to a weights file that the other verbs find."""

import json
import shutil

import pytest
from PIL import Image

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """16 plain pictures with a question each."""
    place = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(16):
        Image.new("RGB", (32, 32), COLOURS[i % 4]).save(place / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": "what is the colour ?", "answers": [COLOURS[i % 4]]})
    path = place / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def trained(folder, data, tmp_path_factory):
    """A model of its own and what to call with."""
    model = shutil.copytree(folder, tmp_path_factory.mktemp("trained") / "model")
    work = model.parent / "work"
    return model, work, ["ldpv2", "--model", model, "--data", data, "--work", work, "--batch", 2, "--steps-a", 2]


def test_a_method_is_trained_judged_and_found_by_other_verbs(call, trained, photo, tmp_path):
    model, work, argv = trained
    asked = ["--image", photo, "--question", "what ?", "--plan", "projector:ldpv2@0.25", "--json"]
    ask = ["run", "--model", model, *asked]
    assert call(*ask).refused("run", "ldpv2: has no weights", "foveate distill METHOD --model MODEL")
    got = call("distill", *argv, "--steps-b", 2, "--held-out", 3)
    path = model / "foveate" / "projector-ldpv2.safetensors"
    assert got.status == 0 and str(path) in got.out and path.is_file()
    assert "KL pooling" in got.out and "agrees ldpv2" in got.out
    assert list((work / "tb").iterdir()) and (work / "checkpoint.pt").is_file()
    assert json.loads(call(*ask).out)["tokens"]["projector"] == 4
    shutil.copytree(path.parent, tmp_path / "elsewhere")
    assert call(*ask, "--learned", tmp_path / "elsewhere").status == 0
    assert call(*ask, "--learned", tmp_path / "nowhere").refused("run", "nowhere", "no such folder")


def test_a_training_that_is_there_is_gone_on_with_only_where_asked(call, trained):
    argv = trained[2]
    call("distill", *argv, "--steps-b", 2, "--held-out", 3, "--resume")
    assert call("distill", *argv, "--steps-b", 2).refused("distill", "a training already", "--resume")
    assert call("distill", *argv, "--steps-b", 2, "--held-out", 3, "--resume").status == 0
    assert call("distill", *argv, "--steps-b", 5, "--resume").refused("distill", "another training", "steps_b 2")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["ldpv2", "--data", "nowhere.jsonl"], ["nowhere.jsonl", "not found"]),
        (["ldpv2", "--data", "tasks:scene"], ["'scene'", "scenes"]),
        (["ldpv2", "--data", "tasks", "--images", "x"], ["--images"]),
        (["ldpv2", "--batch", "0"], ["batch: 0 is below 1"]),
        (["fastv"], ["'fastv' is no method that is distilled", "projector:ldpv2"]),
    ],
)
def test_bad_arguments_are_one_line(call, folder, tmp_path, argv, words):
    got = call("distill", *argv, "--model", folder, "--work", tmp_path / "w")
    assert got.refused("distill", *words)
    assert not (tmp_path / "w").exists()

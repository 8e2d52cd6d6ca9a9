"""`foveate calibrate-heads`: from a command line to scores that the other verbs find."""

import json
import shutil

import numpy as np
import pytest
from tiny_words import QUESTIONS, WORDS


@pytest.fixture
def model(folder, tmp_path):
    """A model of its own."""
    return shutil.copytree(folder, tmp_path / "model")


def test_scores_are_measured_and_found_by_other_verbs(call, model, photo, monkeypatch):
    from foveate.models import head_scores

    texts = [head_scores.Written(np.full((32, 32, 3), i * 9, np.uint8), question, " ".join(WORDS), ((0, 0, 32, 16),))
             for i, question in enumerate(QUESTIONS)]  # fmt: skip
    monkeypatch.setattr(head_scores, "written", lambda: iter(texts))  # a random model writes no word of real ones
    ask = ["run", "--model", model, "--image", photo, "--question", "what ?", "--plan", "decode:sparsemm@0.5", "--json"]
    assert call(*ask).refused("run", "sparsemm: has no weights", "foveate calibrate-heads --model MODEL")
    got = call("calibrate-heads", "--model", model, "--pictures", 4, "--new-tokens", 4)
    path = model / "foveate" / "decode-sparsemm.safetensors"
    assert got.status == 0 and path.is_file() and str(path) in got.out
    assert got.out.splitlines()[0].split() == ["layer", "head", "score", "share", "of", "all"]
    assert len(got.out.splitlines()) == 1 + 10 + 2
    assert 1 <= json.loads(call(*ask).out)["tokens"]["decode"] <= 16  # of the last layer, which may get more than half


def test_a_model_that_cannot_read_is_told_so(call, model):
    got = call("calibrate-heads", "--model", model, "--pictures", 1, "--new-tokens", 2)
    assert got.refused("calibrate-heads", "wrote nothing of the texts on 1 pictures")


@pytest.mark.parametrize("flag", ["--pictures", "--new-tokens"])
def test_a_number_below_one_is_named(call, model, flag):
    assert call("calibrate-heads", "--model", model, flag, 0).refused("calibrate-heads", f"{flag} 0: needs at least 1")

"""Which inputs a verb works on where their number counts for each regime."""

from __future__ import annotations

import argparse
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from foveate.cli import data

pytestmark = pytest.mark.fast


def read(*argv):
    parser = argparse.ArgumentParser()
    data.arguments(parser, "test", 24, "inputs of each regime")
    return data.inputs_of(parser.parse_args([str(each) for each in argv]))


def test_every_regime_has_its_number_each_from_a_picture_of_its_own():
    found = read("--tasks", "scenes,charts", "--n", 5)
    number = Counter(each.regime for each in found)
    assert set(number.values()) == {5} and {"single", "counting", "relations", "search"} < set(number)
    pictures = [each.id.split("#")[0] for each in found]
    assert len(set(pictures)) == len(found) == 5 * len(number)
    assert [each.id for each in read("--tasks", "scenes,charts", "--n", 5)] == [each.id for each in found]


def test_questions_of_pictures_take_turns():
    turns = [each.id.split("#")[1] for each in read("--tasks", "charts", "--n", 4)]
    assert turns[:3] == ["0", "1", "2"]


def test_of_your_own_rows_the_first_of_each_regime_are_taken_with_all_their_questions(tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    turns = [{"question": f"what {i} ?", "answers": ["red"]} for i in range(2)]
    rows = [{"image": "a.png", "turns": turns, "regime": regime} for regime in ("one", "one", "two")]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read("--jsonl", path, "--n", 3)
    assert [each.regime for each in found] == ["one"] * 3 + ["two"] * 2
    assert [each.question for each in found] == ["what 0 ?", "what 1 ?", "what 0 ?", "what 0 ?", "what 1 ?"]


@pytest.mark.parametrize(("argv", "word"), [(["--n", 0], "n: 0"), (["--tasks", "scnes"], "scnes")])
def test_what_cannot_be_is_said(argv, word):
    with pytest.raises(ValueError, match=word):
        read(*argv)

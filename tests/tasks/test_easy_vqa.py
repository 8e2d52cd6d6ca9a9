"""easy-VQA: the package's questions in this project's words, its pictures divided among the splits."""

import importlib.util

import numpy as np
import pytest

from foveate.tasks import easy_vqa
from foveate.tasks.base import SPLITS
from foveate.tasks.questions import Ask
from foveate.tasks.registry import TASKS

pytestmark = [
    pytest.mark.fast,
    pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="easy-vqa is not installed"),
]
TASK = TASKS["easy_vqa"]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("what color is the shape?", "red", Ask("colour_of_object", {}, ("red",))),
        ("what is the color of the circle?", "gray", Ask("colour_of", {"shape": "circle"}, ("gray", "grey"))),
        ("what shape is present?", "triangle", Ask("shape_of_object", {}, ("triangle",))),
        ("what is the teal shape?", "rectangle", Ask("shape_of", {"colour": "teal"}, ("rectangle",))),
        ("is there a red shape?", "yes", None),
    ],
)
def test_questions_are_parsed(question, answer, expected):
    assert easy_vqa.parse(question, answer) == expected


def test_the_splits_share_no_picture_and_leave_none_of_the_training_part_out():
    numbers = {split: set(easy_vqa._numbers(split)) for split in SPLITS}
    train = set().union(*(numbers[split] for split in SPLITS if split != "test"))
    assert sum(len(numbers[split]) for split in SPLITS if split != "test") == len(train) == len(easy_vqa._asks("train"))
    assert len(numbers["host-train"]) > len(numbers["policy-train"]) > len(numbers["validation"]) > 300
    families = [TASK.sample(split, index).family for split in SPLITS for index in range(20)]
    assert len(set(families)) == len(families)


def test_answers_agree_with_the_pixels():
    colours = {
        "black": (0, 0, 0),
        "blue": (0, 0, 255),
        "red": (255, 0, 0),
        "green": (0, 255, 0),
        "yellow": (255, 255, 0),
    }
    checked = 0
    for index in range(60):
        sample = TASK.sample("test", index)
        for turn in sample.turns:
            if turn.template.startswith("colour") and turn.answers[0] in colours:
                near = np.abs(sample.image.astype(int) - colours[turn.answers[0]]).max(axis=-1) < 40
                assert near.sum() > 30, (sample.id, turn)
                checked += 1
    assert checked > 20


def test_an_index_beyond_the_end_starts_over():
    length = len(easy_vqa._numbers("calibration"))
    first, again = TASK.sample("calibration", 1), TASK.sample("calibration", 1 + length)
    assert first.family == again.family and first.id != again.id


def test_absence_is_reported(monkeypatch):
    easy_vqa._folder.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        assert TASK.available() == "package easy-vqa is not installed"
        with pytest.raises(ValueError, match="task 'easy_vqa' is not usable"):
            TASK.sample("test", 0)
    finally:
        easy_vqa._folder.cache_clear()

"""Clip art: vendored files, and answers recomputed from what was pasted."""

from collections import Counter
from importlib import resources

import numpy as np
import pytest

from foveate.tasks.base import DENSE_WHAT, PICTURES, SPLITS
from foveate.tasks.clipart import catalogue, missing_photos, photo_ground, picture
from foveate.tasks.registry import TASKS
from foveate.tasks.scenes import plural
from foveate.tasks.splits import stream

pytestmark = pytest.mark.fast
TASK = TASKS["pictures"]


def test_the_vendored_sheet_is_small_and_every_box_holds_a_picture():
    folder = resources.files("foveate.tasks") / "data" / "clipart"
    assert len((folder / "sheet.png").read_bytes()) < 1_500_000
    assert "Public Domain" in (folder / "LICENSE.txt").read_text()
    assert {row["what"] for row in catalogue()} == set(PICTURES)
    for number, row in enumerate(catalogue()):
        left, top, right, bottom = row["box"]
        assert max(right - left, bottom - top) == 44
        image, mask = picture(number, 40, False)
        assert max(image.size) == 44 and np.asarray(mask).mean() > 20


def test_flipping_mirrors_a_picture():
    image, mask = picture(3, 32, False)
    flipped, flipped_mask = picture(3, 32, True)
    assert np.array_equal(np.asarray(mask)[:, ::-1], np.asarray(flipped_mask))
    assert not np.array_equal(np.asarray(image), np.asarray(flipped))


def test_photo_grounds_are_textures_of_full_size():
    assert missing_photos() == []
    for split in SPLITS:
        for number in range(4):
            ground = np.asarray(photo_ground(split, stream("photo", number)), float)
            assert ground.shape == (96, 96, 3) and ground.std(axis=(0, 1)).max() < 60


def test_answers_agree_with_the_programme_and_with_the_labels():
    for index in range(150):
        programme, sample = TASK.find("test", index)[0], TASK.sample("test", index)
        counts = Counter(what for what, _ in programme["things"])
        shown = {DENSE_WHAT[number] for number in set(sample.dense[..., 0].ravel().tolist())} - {"background"}
        assert shown == set(counts)
        side = programme["side"]
        for turn in sample.turns:
            words = turn.question.rstrip("?").split()
            if turn.template == "what_shown":
                assert turn.answers == (programme["things"][0][0],)
            elif turn.template == "count_objects":
                assert turn.answers == (str(len(programme["things"])),)
            elif turn.template == "count_of":
                (what,) = (name for name in PICTURES if plural(name) in words)
                assert turn.answers == (str(counts[what]),)
            elif turn.template == "is_there":
                assert turn.answers == (("yes" if words[-1] in counts else "no"),)
            else:
                assert turn.template == "what_beside" and counts[words[-1]] == 1
                cells = {cell: what for what, cell in programme["things"]}
                (start,) = (cell for cell, what in cells.items() if what == words[-1])
                step = {"left": -1, "right": 1, "above": -side, "below": side}[words[-4 if "of" in words else -3]]
                cell = start + step
                while cell not in cells:
                    cell += step
                assert turn.answers == (cells[cell],)


def test_the_task_says_which_photograph_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert TASK.available() == "photograph skimage/data/grass.png is not installed (scikit-image, scikit-learn)"

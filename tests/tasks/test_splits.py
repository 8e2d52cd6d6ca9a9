"""Splits are disjoint by programme, font, picture, photograph and digit scan."""

import math
from collections import Counter
from importlib import resources
from itertools import combinations

import pytest

from foveate.tasks.base import PICTURES, SPLITS
from foveate.tasks.clipart import PHOTOS, catalogue, pictures_of
from foveate.tasks.digits import scans_of
from foveate.tasks.registry import TASKS, regime_sample, regimes
from foveate.tasks.splits import FONTS, SHARES, digest, split_of, stream

pytestmark = pytest.mark.fast


def disjoint(groups):
    return all(not set(a) & set(b) for a, b in combinations(groups, 2))


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    # a fixed value: another machine, process or Python must agree
    assert digest({"things": [["red", "circle", 3, 1]]}) == "205a21b10c637f6b"


def test_split_of_cuts_digest_space_at_the_cumulated_shares():
    assert math.isclose(sum(SHARES.values()), 1.0) and tuple(SHARES) == SPLITS
    edges = {"00000000": 0, "7fffffff": 0, "80000000": 1, "b3333332": 1, "b3333334": 2, "cccccccd": 3, "ffffffff": 4}
    for key, place in edges.items():
        assert split_of(key) == SPLITS[place], key


def test_shares_are_met_by_random_programmes():
    found = Counter(split_of(digest(["programme", k])) for k in range(5000))
    for split, share in SHARES.items():
        assert abs(found[split] / 5000 - share) < 0.02


def test_streams_differ_by_key_and_repeat():
    assert stream("a", 1).random() == stream("a", 1).random()
    assert stream("a", 1).random() != stream("a", 2).random()


def test_every_vendored_face_belongs_to_exactly_one_split():
    folder = resources.files("foveate.tasks") / "data" / "fonts"
    files = sorted(entry.name.removesuffix(".ttf") for entry in folder.iterdir() if entry.name.endswith(".ttf"))
    assert sorted(face for faces in FONTS.values() for face in faces) == files
    assert len(files) == 20
    for faces in FONTS.values():
        assert any(face.startswith("DejaVuSans") for face in faces)
        assert any(face.startswith("DejaVuSerif") for face in faces)
        assert any("Mono" in face or "Condensed" in face for face in faces)


def test_pictures_photographs_and_scans_are_divided():
    assert disjoint(PHOTOS.values()) and set(PHOTOS) == set(SPLITS)
    for what in PICTURES:
        parts = [pictures_of(split, what) for split in SPLITS]
        assert all(parts) and disjoint(parts) and sum(map(len, parts)) >= 8
    sources = [row["source"] for row in catalogue()]
    assert len(set(sources)) == len(sources)
    for digit in range(10):
        parts = [scans_of(split)[digit] for split in SPLITS]
        assert min(map(len, parts)) >= 5 and disjoint(parts)


@pytest.mark.parametrize("regime", regimes())
def test_no_programme_appears_in_two_splits(regime):
    (task,) = (task for task in TASKS.values() if regime in task.regimes)

    def family(split, index):  # a video's programme alone: nothing is painted
        place = index * len(task.regimes) + task.regimes.index(regime)
        return task.find(split, place)[1] if task.shows == "video" else task.sample(split, place).family

    families = [{family(split, index) for index in range(40)} for split in SPLITS]
    assert disjoint(families)
    if regime != "easy_vqa":  # its pictures are a fixed set, divided by number
        for split, found in zip(SPLITS, families, strict=True):
            assert {split_of(family) for family in found} == {split}


def test_the_smallest_regime_has_room_in_every_split():
    for split in SPLITS:
        families = [regime_sample("single", split, index).family for index in range(150)]
        assert len(set(families)) > 110

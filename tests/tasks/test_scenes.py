"""Scenes: the spatial rule worked out by hand, and answers recomputed from what was drawn."""

from collections import Counter

import pytest

from foveate.tasks.base import DENSE_COLOUR, DENSE_WHAT
from foveate.tasks.registry import TASKS, regime_sample
from foveate.tasks.scenes import beside, plural

pytestmark = pytest.mark.fast
SCENES = TASKS["scenes"]


def programmes(regime, split, count):
    place = SCENES.regimes.index(regime)
    for number in range(count):
        index = number * 4 + place
        yield SCENES.find(split, index)[0], SCENES.sample(split, index)


class TestBeside:
    def test_the_nearest_in_the_same_row_counts(self):
        cells = [(2, 1), (1, 1), (0, 1)]
        assert beside(cells, 0, "left of") == 1
        assert beside(cells, 2, "right of") == 1
        assert beside(cells, 0, "right of") is None

    def test_above_is_a_smaller_row(self):
        cells = [(1, 0), (1, 2)]
        assert beside(cells, 1, "above") == 0
        assert beside(cells, 0, "below") == 1
        assert beside(cells, 0, "above") is None

    def test_a_diagonal_neighbour_is_never_the_answer(self):
        assert beside([(1, 1), (0, 0)], 0, "left of") is None

    def test_a_rival_about_as_near_makes_it_ambiguous(self):
        # the answer two columns away (distance 2) against a diagonal at distance 1.41, then 2.24
        assert beside([(2, 1), (0, 1), (1, 0)], 0, "left of") is None
        assert beside([(2, 1), (1, 1), (1, 0)], 0, "left of") == 1
        # two columns away (4, squared) against a rival at the square root of 5
        assert beside([(2, 1), (0, 1), (0, 0)], 0, "left of") is None


def test_plurals():
    assert [plural(word) for word in ("circle", "cross", "bus", "city", "day", "fish", "tree")] == [
        "circles",
        "crosses",
        "buses",
        "cities",
        "days",
        "fish",
        "trees",
    ]


def test_single_answers_agree_with_the_labels():
    for index in range(40):
        sample = regime_sample("single", "test", index)
        cells = Counter(map(tuple, sample.dense.reshape(-1, 2).tolist()))
        del cells[0, 0]
        ((what, colour),) = cells  # one object: one label
        truth = {"colour": DENSE_COLOUR[colour], "shape": DENSE_WHAT[what]}
        for turn in sample.turns:
            assert turn.answers == (truth[turn.template.split("_")[0]],)


@pytest.mark.parametrize("split", ["host-train", "test"])
def test_search_asks_only_about_attributes_that_one_object_has(split):
    for programme, sample in programmes("search", split, 40):
        things = programme["things"]
        assert 3 <= len(things) <= 9
        for turn in sample.turns:
            words = turn.question.rstrip("?").split()
            given = [t for t in things if t[0] in words or t[1] in words]
            assert len(given) == 1
            assert turn.answers == ((given[0][0] if turn.template == "colour_of" else given[0][1]),)


def test_counts_are_the_numbers_of_matching_objects():
    zeros = total = 0
    for programme, sample in programmes("counting", "policy-train", 80):
        things = programme["things"]
        for turn in sample.turns:
            words = turn.question.rstrip("?").split()
            if turn.template == "count_objects":
                expected = len(things)
            else:
                expected = sum(t[0] in words or plural(t[1]) in words for t in things)
            assert turn.answers == (str(expected),)
            zeros, total = zeros + (expected == 0), total + 1
    assert 0 < zeros < 0.08 * total


def test_relations_hold_in_the_pixels():
    """Recomputed from label centres, not from the grid the programme was drawn on."""
    checked = 0
    for programme, sample in programmes("relations", "validation", 40):
        centres = {}
        for colour, shape, *_ in programme["things"]:
            code = [DENSE_WHAT.index(shape), DENSE_COLOUR.index(colour)]
            rows, columns = (sample.dense == code).all(axis=-1).nonzero()
            centres[colour, shape] = (columns.mean(), rows.mean())
        for turn in sample.turns:
            words = turn.question.rstrip("?").split()
            named = [(words[k], words[k + 1]) for k in range(len(words) - 1) if (words[k], words[k + 1]) in centres]
            axis, sign = next(
                (axis, sign)
                for word, axis, sign in (("left", 0, -1), ("right", 0, 1), ("above", 1, -1), ("below", 1, 1))
                if word in words
            )
            if turn.template == "is_beside":
                (a, b) = named
                gap = (centres[a][axis] - centres[b][axis]) * sign
                assert turn.answers == (("yes" if gap > 0 else "no"),)
            else:
                (reference,) = named
                x0 = centres[reference]
                ahead = [
                    (abs(c[0] - x0[0]) + abs(c[1] - x0[1]), key)
                    for key, c in centres.items()
                    if (c[axis] - x0[axis]) * sign > 4 and abs(c[1 - axis] - x0[1 - axis]) < 5
                ]
                assert turn.answers[0] in min(ahead)[1]
            checked += 1
    assert checked > 80


def test_yes_and_no_are_balanced():
    answers = Counter(
        turn.answers[0]
        for index in range(500)
        for turn in regime_sample("relations", "host-train", index).turns
        if turn.template == "is_beside"
    )
    assert set(answers) == {"yes", "no"} and abs(answers["yes"] / sum(answers.values()) - 0.5) < 0.08

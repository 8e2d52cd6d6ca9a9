"""The metric, the class lists and the address check."""

import pytest

from foveate.tasks.base import (
    CHARACTERS,
    COLOURS,
    DENSE_COLOUR,
    DENSE_WHAT,
    PICTURES,
    SHAPES,
    SPLITS,
    check_address,
    exact_match,
    normalise,
    similarity,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red ", "red"),
        ("two   words", "two words"),
        ("4 2", "42"),
        ("a 4 b", "a4b"),
        ("Yes.", "yes"),
        ("\tno\n", "no"),
        ("", ""),
    ],
)
def test_normalise_works_as_written_out_by_hand(text, expected):
    assert normalise(text) == expected
    assert normalise(normalise(text)) == expected


def test_exact_match_takes_any_accepted_answer_and_nothing_near():
    assert exact_match(" Grey.", ("gray", "grey"))
    assert exact_match("1 2 3", ("123",))
    assert not exact_match("12", ("123",))
    assert not exact_match("red car", ("red",))
    assert not exact_match("red", ())


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("room: oslo day: mon", 1.0),
        (" Room:  oslo day: mon.", 1.0),
        ("room: osl day: mon", 18 / 19),  # one letter is missing, and nothing behind it counts as wrong
        ("room: oslo day: tue", 16 / 19),
        ("room: oslo", 10 / 19),
        ("room: oslo day: mon day: mon", 19 / 28),
        ("", 0.0),
    ],
)
def test_similarity_counts_characters_to_change(said, grade):
    assert similarity(said, ("nothing of this kind was written", "room: oslo day: mon")) == pytest.approx(grade)


def test_similarity_of_nothing_to_say_is_one():
    assert similarity("", ("",)) == 1


def test_dense_classes_are_unique_and_start_with_the_background():
    assert DENSE_WHAT[0] == "background" and DENSE_COLOUR[0] == "none"
    assert len(set(DENSE_WHAT)) == len(DENSE_WHAT) == 1 + len(SHAPES) + len(CHARACTERS) + 3 + len(PICTURES)
    assert DENSE_COLOUR[1:] == COLOURS
    assert set("abcxyz0189") <= set(DENSE_WHAT)


def test_a_bad_address_is_refused_by_name():
    for split in SPLITS:
        check_address(split, 0)
    with pytest.raises(ValueError, match=r"split 'train' is unknown.*host-train"):
        check_address("train", 0)
    with pytest.raises(ValueError, match="index -1 is negative"):
        check_address("test", -1)

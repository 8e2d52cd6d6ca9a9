"""Wording and choice of questions."""

import string

import pytest

from foveate.tasks.questions import ALL_WORDINGS, FILM_WORDINGS, PAGE_WORDINGS, WORDINGS, Ask, pick, word
from foveate.tasks.splits import stream

pytestmark = pytest.mark.fast


def test_wordings_of_a_template_differ_and_use_the_same_slots():
    for template, wordings in ALL_WORDINGS.items():
        slots = [{name for _, name, _, _ in string.Formatter().parse(wording) if name} for wording in wordings]
        assert len(set(wordings)) == len(wordings) >= 2, template
        assert all(found == slots[0] for found in slots), template


def test_no_wording_belongs_to_two_templates():
    wordings = [wording for found in ALL_WORDINGS.values() for wording in found]
    assert len(set(wordings)) == len(wordings)
    assert len(ALL_WORDINGS) == len(WORDINGS) + len(FILM_WORDINGS) + len(PAGE_WORDINGS)


def test_word_fills_the_slots_and_takes_the_wordings_in_turn():
    ask = Ask("colour_of", {"shape": "star"}, ("red",))
    assert word(ask, 0) == word(ask, 2) == "what colour is the star?"
    assert word(ask, 1) == "which colour does the star have?"


def test_pick_takes_every_template_once_before_any_comes_twice():
    asks = [Ask("value_of", {"row": str(k)}, (str(k),)) for k in range(8)] + [Ask("highest", {}, ("a",))]
    for seed in range(20):
        chosen = pick(asks, 3, stream(seed))
        assert len({(ask.template, ask.slots.get("row")) for ask in chosen}) == 3
        assert [ask.template for ask in chosen].count("highest") == 1
    assert len(pick(asks, 50, stream(0))) == 9
    assert pick([], 3, stream(0)) == []

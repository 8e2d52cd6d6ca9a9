"""Whole pages with long answers: what stands there, how long it is, and who is not trained on it."""

import pytest

from foveate.models.reference.evaluate import usable_regimes
from foveate.models.reference.processor import build_tokenizer
from foveate.tasks.base import SPLITS
from foveate.tasks.registry import TASKS, regime_sample
from foveate.tasks.transcripts import LINES, TOKENS, characters, page_text

pytestmark = pytest.mark.fast
TASK = TASKS["transcripts"]


def test_the_answer_is_all_that_stands_on_the_page_line_by_line():
    for index in range(10):
        programme, sample = TASK.find("test", index)[0], TASK.sample("test", index)
        pairs = zip(programme["keys"], programme["values"], strict=True)
        assert sample.turns[0].answers == (" ".join(f"{key}: {value}" for key, value in pairs),)
        assert len(sample.turns) == 1 and len(set(programme["keys"])) == LINES
        letters = sum(character.isalnum() for character in sample.turns[0].answers[0])
        assert len(sample.turns[0].at) == letters, "a box for each letter and digit"


def test_every_answer_has_at_least_64_tokens_of_the_reference_tokenizer():
    tokenizer = build_tokenizer()
    for split in SPLITS:
        for index in range(40):
            (answer,) = regime_sample("transcript", split, index).turns[0].answers
            count = len(tokenizer(answer, add_special_tokens=False).input_ids)
            assert count == characters(answer) >= TOKENS == 64, answer


def test_what_the_vocabulary_has_whole_counts_as_one():
    assert characters("name: cat room: 412") == 5 + 1 + 5 + 3
    assert characters("name: anna") == 5 + 3 and characters("name: carl") == 5 + 2
    assert page_text([["", "jan"], ["bob", "7"]]) == "jan bob 7"


def test_the_same_page_has_a_question_for_each_of_its_lines():
    programme = TASK.find("test", 3)[0]
    asks = TASK.every(programme)
    assert [(ask.slots["key"], ask.answers) for ask in asks] == [
        (key, (value,)) for key, value in zip(programme["keys"], programme["values"], strict=True)
    ]


def test_the_reference_is_neither_trained_nor_judged_on_whole_pages():
    assert TASK.long_answers and "transcript" not in usable_regimes()
    assert {"forms", "reading", "counting", "digits"} <= set(usable_regimes())
    assert [name for name, task in TASKS.items() if task.long_answers] == ["transcripts"]

"""Whole pages to read out: the only built-in questions with long answers."""

from __future__ import annotations

import random

from foveate.tasks.base import PICTURES
from foveate.tasks.documents import Documents, value_of
from foveate.tasks.generated import Programme
from foveate.tasks.questions import Ask
from foveate.tasks.words import KEYS

LINES = 8
TOKENS = 64  # of an answer, see `characters`
SPELLED = sorted(key for key in KEYS if key != "price")  # "price" is a word of the questions, one token
WHOLE = ("an", *PICTURES)  # of the words in forms, what the vocabulary of the questions has as a token


class Transcripts(Documents):
    """Forms of eight lines, filled from edge to edge, of which everything is asked for at once."""

    name = "transcripts"
    regimes = ("transcript",)
    long_answers = True

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`; pages of too few characters are not asked about."""
        keys = rng.sample(SPELLED, LINES)
        drawn = {"keys": keys, "values": [value_of(key, rng) for key in keys]}
        return drawn if characters(page_text(self.lines(drawn))) >= TOKENS else None

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        lines = self.lines(programme)
        at = tuple(f"{y},{x}" for y, line in enumerate(lines) for x in range(len(line)))
        return [Ask("whole_page", {}, (page_text(lines),), at=at)]


def page_text(lines: list[list[str]]) -> str:
    """A page as it is read out: line by line, cell by cell."""
    return " ".join(cell for line in lines for cell in line if cell)


def characters(text: str) -> int:
    """Tokens of a form's text where letters, digits and colons are one each, but for the beginnings in `WHOLE`."""
    spared = (max((len(start) for start in WHOLE if word.startswith(start)), default=1) - 1 for word in text.split())
    return len(text.replace(" ", "")) - sum(spared)

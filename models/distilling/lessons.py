"""What the recipe trains on: pictures with a question each, drawn by number, so that a resumed run goes on alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from foveate.tasks.base import Box, Sample, TaskDataError
from foveate.tasks.jsonl import sample_of
from foveate.tasks.registry import get_task, regime_sample, regimes
from foveate.tasks.splits import digest, stream

HELD_OUT = 10
"""One picture in so many of a user's file is never trained on."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """A picture and a question.

    Attributes:
        image: (H, W, 3) uint8, or several of them.
        question: text.
        answer: what to say; None = whatever the host says when it sees all tokens.
        at: boxes on one picture, in pixels, that the answer is read from; () = not known.
    """

    image: np.ndarray | tuple[np.ndarray, ...]
    question: str
    answer: str | None
    at: tuple[Box, ...] = ()


class Lessons(Protocol):
    """A source of lessons; the same number is the same lesson, in any process.

    Attributes:
        label: of the data, kept in checkpoints and weights files.
    """

    label: str

    def lesson(self, number: int, seed: int) -> Lesson:
        """Lesson `number` of an endless stream."""

    def held_out(self, count: int) -> list[Lesson]:
        """At most `count` lessons on pictures that the stream never shows."""


class TaskLessons:
    """Lessons from built-in tasks: regimes in turn, each round in an order of its own.

    Args:
        tasks: names.
        split: that is trained on.
        judged: split of the held-out ones.
    Raises:
        ValueError: an unknown task, one that is not usable here, or none.
    """

    def __init__(self, tasks: Sequence[str], split: str = "host-train", judged: str = "validation") -> None:
        for name in tasks:
            if (reason := get_task(name).available()) is not None:
                raise ValueError(f"task {name!r} is not usable: {reason}")
        self.regimes, self.split, self.judged = list(regimes(tasks)), split, judged
        if not self.regimes:
            raise ValueError("tasks: names nothing")
        self.label = "tasks:" + ",".join(tasks)

    def lesson(self, number: int, seed: int) -> Lesson:
        """See `Lessons.lesson`."""
        turn, place = divmod(number, len(self.regimes))
        order = stream("distilling", seed, turn).sample(self.regimes, len(self.regimes))
        return _of(regime_sample(order[place], self.split, turn), number, seed)

    def held_out(self, count: int) -> list[Lesson]:
        """See `Lessons.held_out`."""
        names = self.regimes
        return [_of(regime_sample(names[i % len(names)], self.judged, i // len(names)), i, 0) for i in range(count)]


class FileLessons:
    """Lessons from a user's JSONL file, read line by line where they stand: pictures are never held in memory.

    One picture in `HELD_OUT`, at least one, is kept for judging, with all its rows; rows that name a family go by it.
    A row that cannot be used is reported once and the next one taken.

    Args:
        path: the file.
        root: folder that picture paths start from; None = the file's own.
        report: takes one line for each bad row; None = standard error.
    Raises:
        TaskDataError: the file is not there, or holds no row to train on.
    """

    def __init__(
        self, path: str | Path, root: str | Path | None = None, report: Callable[[str], None] | None = None
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise TaskDataError(f"{self.path}: file not found")
        self.root = self.path.parent if root is None else Path(root)
        self.report, self._bad = report or (lambda line: print(line, file=sys.stderr)), set()
        rows = [(at, number, _key(line)) for at, number, line in self._lines()]
        keys = sorted({key for *_, key in rows if key})
        kept = set(keys[: max(1, len(keys) // HELD_OUT)]) if len(keys) > 1 else set()
        self.taught = [(at, number) for at, number, key in rows if key not in kept]
        self.judged = [(at, number) for at, number, key in rows if key in kept]
        if not self.taught:
            raise TaskDataError(f"{self.path}: holds no row to train on")
        self.label = f"{self.path.name}, {len(self.taught)} rows"

    def lesson(self, number: int, seed: int) -> Lesson:
        """See `Lessons.lesson`; every pass over the file has an order of its own."""
        turn, place = divmod(number, len(self.taught))
        order = np.random.default_rng([seed, turn]).permutation(len(self.taught))
        for step in range(len(self.taught)):
            sample = self._sample(*self.taught[order[(place + step) % len(order)]])
            if sample is not None:
                return _of(sample, number, seed)
        raise TaskDataError(f"{self.path}: no row of it can be used")

    def held_out(self, count: int) -> list[Lesson]:
        """See `Lessons.held_out`."""
        found = (self._sample(*row) for row in self.judged)
        return [_of(sample, i, 0) for i, sample in zip(range(count), (s for s in found if s is not None), strict=False)]

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(offset, number, line) of each line that is not blank."""
        at = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield at, number, line
                at += len(line)

    def _sample(self, at: int, number: int) -> Sample | None:
        with self.path.open("rb") as file:
            file.seek(at)
            line = file.readline()
        try:
            return sample_of(line, number, self.path, self.root)
        except TaskDataError as error:
            if number not in self._bad:
                self._bad.add(number)
                self.report(f"{self.path.name}:{number}: {error}")
            return None


def _key(line: bytes) -> str:
    """What rows of one picture share, in no order; "" for a line that cannot be read, reported when its turn comes."""
    try:
        row = json.loads(line)
        return digest(row.get("family") or row.get("images") or row["image"])
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return ""


def _of(sample: Sample, number: int, seed: int) -> Lesson:
    """One of a sample's questions."""
    turn = stream("question", seed, number).choice(sample.turns)
    return Lesson(sample.shown, turn.question, turn.answers[0] if turn.answers else None, turn.at)

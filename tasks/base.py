"""Samples, turns and the task interface: pictures with questions whose answers are known."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from foveate.tasks.clip import Clip

SPLITS = ("host-train", "policy-train", "validation", "calibration", "test")
IMAGE_SIZE = 96  # pixels per side of every built-in picture
CELL = 4  # pixels per side of one dense label cell

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PICTURES = (
    "cat", "dog", "bird", "tree", "flower", "car", "house", "hat",
    "cake", "plane", "phone", "ball", "cup", "bulb", "book", "balloon",
)  # fmt: skip
DENSE_WHAT: tuple[str, ...] = ("background", *SHAPES, *CHARACTERS, "plate", "bar", "line", *PICTURES)
DENSE_COLOUR: tuple[str, ...] = ("none", *COLOURS)


# left, top, right, bottom in px; right and bottom excluded; in a video the number of the frame stands behind them
Box = tuple[float, float, float, float] | tuple[float, float, float, float, int]


class TaskDataError(ValueError):
    """A user's data row that cannot be used; the message names file, line and reason."""


@dataclass(frozen=True)
class Turn:
    """One question about a picture.

    Args:
        question: the text as asked.
        answers: accepted answers, the first is canonical; empty = label-free.
        template: id of the question template, shared by regimes that ask the same thing.
        via: where the things are that the question names, one group of boxes each; () = not known.
        at: where the answer is read from: a box for each character of a written answer, else one for each thing; () =
            not known.
    """

    question: str
    answers: tuple[str, ...]
    template: str
    via: tuple[tuple[Box, ...], ...] = ()
    at: tuple[Box, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, several that are asked about together, or a video, with their questions.

    Args:
        id: "task/split/index", with "~r" behind it for the r-th twin.
        task: name of the task.
        regime: kind of problem inside the task, e.g. "counting".
        split: one of SPLITS.
        family: digest of the scene programme without its noise: the unit for bootstraps. Twins share it.
        index: position in the split.
        image: (H, W, 3) uint8, the first picture; 96 x 96 for built-in tasks, which show no other.
        turns: the questions, in the order they are asked.
        caption: short description of what is on the picture.
        dense: (24, 24, 2) int16, for each 4 x 4 px cell the class (DENSE_WHAT) and the colour (DENSE_COLOUR) that
            cover most of its labelled pixels; 0 where fewer than a quarter of them are labelled. None = no labels.
            (T, 24, 24, 2) where there is a clip.
        more: the pictures behind `image`, in the order of the prompt.
        clip: the video that is asked about; `image` is then its middle frame, for who looks at one. None = no video.
    """

    id: str
    task: str
    regime: str
    split: str
    family: str
    index: int
    image: np.ndarray
    turns: tuple[Turn, ...]
    caption: str = ""
    dense: np.ndarray | None = None
    more: tuple[np.ndarray, ...] = ()
    clip: Clip | None = None

    @property
    def images(self) -> tuple[np.ndarray, ...]:
        """All pictures."""
        return (self.image, *self.more)

    @property
    def shown(self) -> np.ndarray | tuple[np.ndarray, ...] | Clip:
        """What a model is shown: the video, the picture, or the tuple of several."""
        if self.clip is not None:
            return self.clip
        return self.images if self.more else self.image


class Task(ABC):
    """A deterministic source of samples: the same (split, index) gives the same sample, in any process."""

    name: str
    regimes: tuple[str, ...]
    shows: ClassVar[str] = "picture"  # or "video": samples have a clip
    long_answers: ClassVar[bool] = False  # whole texts, to be graded by `similarity`; no embedded model has learned it

    def available(self) -> str | None:
        """None when usable here, else one line with the reason."""
        return None

    @abstractmethod
    def sample(self, split: str, index: int) -> Sample:
        """The sample at `index` of `split`; regimes take turns, so index i belongs to regime i % len(regimes).

        Raises:
            ValueError: `split` is not one of SPLITS, or `index` is negative.
        """

    @abstractmethod
    def twins(self, sample: Sample, r: int) -> list[Sample]:
        """`r` samples of the same programme and questions in new noise, jitter, font (same split) and wording.

        Raises:
            ValueError: `sample` is of another task, or `r` is negative.
        """

    def check_twins(self, sample: Sample, r: int) -> None:
        """Refuse a sample of another task or a negative number of twins.

        Raises:
            ValueError: with the name, the value and what is allowed.
        """
        if sample.task != self.name:
            raise ValueError(f"sample {sample.id} belongs to task {sample.task!r}, not to {self.name!r}")
        if r < 0:
            raise ValueError(f"r is {r}, the number of twins must be at least 0")

    def regime_of(self, index: int) -> str:
        """The regime that `index` belongs to."""
        return self.regimes[index % len(self.regimes)]


def check_address(split: str, index: int) -> None:
    """Refuse a split that does not exist or an index below 0.

    Raises:
        ValueError: with the name, the value and what is allowed.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown, choose from {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index {index} is negative, samples are numbered from 0")


def normalise(text: str) -> str:
    """The form in which answers are compared: lower case, single spaces, none beside a digit, no closing full stop."""
    text = re.sub(r"\s+", " ", text.strip().lower()).rstrip(". ")
    return re.sub(r"\s*(\d)\s*", r"\1", text)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether `prediction` equals one of `answers` after `normalise`."""
    said = normalise(prediction)
    return any(said == normalise(answer) for answer in answers)


def similarity(prediction: str, answers: Sequence[str]) -> float:
    """How much of the nearest of `answers` was said, in [0, 1]: 1 - characters to change / characters of the longer.

    Both are normalised first. A character too many or too few costs itself alone: what follows it is still right.
    """
    said = normalise(prediction)
    return max(1 - _edits(said, text) / max(len(said), len(text), 1) for text in map(normalise, answers))


def _edits(a: str, b: str) -> int:
    """Fewest characters to insert, delete or replace that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]

"""Inputs of episodes: one question each about a picture, several or a video, from samples of several questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.tasks.base import Sample, check_address
from foveate.tasks.clip import Clip
from foveate.tasks.registry import get_task, regime_sample, regimes


@dataclass(frozen=True, eq=False)
class Input:
    """One (sample, turn).

    Attributes:
        id: the sample's id and the number of the turn, "scenes/test/12#0".
        image: (H, W, 3) uint8, a tuple of several, or a video: what a host is shown.
        question: as asked.
        answers: accepted ones; empty where nobody knows.
        regime, family, template, split: of the sample and its turn.
    """

    id: str
    image: np.ndarray | tuple[np.ndarray, ...] | Clip
    question: str
    answers: tuple[str, ...]
    regime: str
    family: str
    template: str
    split: str

    @property
    def images(self) -> tuple[np.ndarray | Clip, ...]:
        """All pictures, or the video."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def film(self) -> bool:
        """Whether a video is shown."""
        return any(isinstance(one, Clip) for one in self.images)


def input_of(sample: Sample, turn: int) -> Input:
    """The input of one turn. Raises: ValueError where the sample has no such turn."""
    if not 0 <= turn < len(sample.turns):
        raise ValueError(f"{sample.id}: turn {turn} is outside 0..{len(sample.turns) - 1}")
    asked = sample.turns[turn]
    about = (sample.regime, sample.family, asked.template, sample.split)
    return Input(f"{sample.id}#{turn}", sample.shown, asked.question, tuple(asked.answers), *about)


def inputs_of(samples: Iterable[Sample], turns: int | None = None) -> Iterator[Input]:
    """All inputs of samples in order, at most `turns` of each."""
    for sample in samples:
        for turn in range(min(len(sample.turns), turns or len(sample.turns))):
            yield input_of(sample, turn)


class Source(Protocol):
    """Where episodes get their inputs. `draw` is a pure function of the generator's state.

    Attributes:
        video: there are videos among them; where a source does not say, there are none.
    """

    def draw(self, rng: np.random.Generator) -> Input:
        """One input."""

    def __getitem__(self, index: int) -> Input:
        """The input at `index`, for an episode that asks for it."""


class ListSource:
    """Inputs held in memory.

    Args:
        inputs: at least one.
    Raises:
        ValueError: there is none.
    """

    def __init__(self, inputs: Iterable[Input]) -> None:
        self.inputs: Sequence[Input] = tuple(inputs)
        if not self.inputs:
            raise ValueError("inputs is empty, an episode needs at least one")
        self.video = any(each.film for each in self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def draw(self, rng: np.random.Generator) -> Input:
        """One input, each alike likely."""
        return self.inputs[int(rng.integers(len(self.inputs)))]

    def __getitem__(self, index: int) -> Input:
        """The input at `index`. Raises: ValueError outside 0..n - 1."""
        if not 0 <= index < len(self.inputs):
            raise ValueError(f"index {index} is outside 0..{len(self.inputs) - 1}")
        return self.inputs[index]


class TaskSource:
    """Inputs of built-in tasks, drawn when they are asked for; every regime alike likely.

    Args:
        tasks: names.
        split: one of `tasks.base.SPLITS`.
        per_regime: samples of each regime that episodes draw from.
    Raises:
        ValueError: an unknown task or split, a task that is not usable here, or no sample.
    """

    def __init__(self, tasks: Sequence[str], split: str = "policy-train", per_regime: int = 10_000) -> None:
        check_address(split, 0)
        if not tasks or per_regime < 1:
            raise ValueError(f"tasks {list(tasks)} with {per_regime} samples per regime: needs at least one of each")
        for name in tasks:
            if reason := get_task(name).available():
                raise ValueError(f"task {name!r} is not usable: {reason}")
        self.split, self.per_regime, self.regimes = split, per_regime, regimes(tasks)
        self.video = any(get_task(name).shows == "video" for name in tasks)

    def draw(self, rng: np.random.Generator) -> Input:
        """One input: regime, sample and turn uniformly."""
        regime, index, turn = rng.integers(len(self.regimes)), rng.integers(self.per_regime), rng.random()
        sample = regime_sample(self.regimes[int(regime)], self.split, int(index))
        return input_of(sample, int(turn * len(sample.turns)))

    def __getitem__(self, index: int) -> Input:
        """The first turn of sample `index`, regimes taking turns. Raises: ValueError on a negative index."""
        check_address(self.split, index)
        number, regime = divmod(index, len(self.regimes))
        return input_of(regime_sample(self.regimes[regime], self.split, number), 0)

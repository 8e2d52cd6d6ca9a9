"""Tasks that are drawn: a programme (plain data) is chosen, painted and asked about."""

from __future__ import annotations

import random
from abc import abstractmethod
from typing import Any

from foveate.tasks.base import Sample, Task, Turn, check_address
from foveate.tasks.questions import Ask, word
from foveate.tasks.render import Canvas
from foveate.tasks.splits import digest, split_of, stream

Programme = dict[str, Any]
TRIES = 5000  # a split with a tenth of the programmes misses this often with probability 0.9 ** 5000


class GeneratedTask(Task):
    """Draws programmes until one falls into the split, then paints it and asks about it.

    Programme and questions depend on (task, split, index) alone; noise, jitter, font and wording also on the twin.
    """

    @abstractmethod
    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """What is on the picture, without noise: plain data. None when this draw cannot be asked about."""

    @abstractmethod
    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """Draw the programme; everything that the programme leaves open comes from `canvas.rng`."""

    @abstractmethod
    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """The questions, in order."""

    @abstractmethod
    def caption(self, programme: Programme) -> str:
        """A short description of the content."""

    def surface(self, split: str, rng: random.Random, programme: Programme) -> Canvas:
        """What the programme is painted on."""
        return Canvas(split, rng)

    def shown(self, canvas: Canvas) -> dict[str, Any]:
        """The fields of `Sample` that come from the painting."""
        return {"image": canvas.image_array(), "dense": canvas.dense()}

    def find(self, split: str, index: int) -> tuple[Programme, str]:
        """The programme at (split, index) and its digest, which lies in the split's share of digest space."""
        check_address(split, index)
        regime, rng = self.regime_of(index), stream(self.name, split, index)
        for _ in range(TRIES):
            programme = self.programme(regime, rng)
            if programme is None:
                continue
            programme["regime"] = f"{self.name}/{regime}"
            family = digest(programme)
            if split_of(family) == split:
                return programme, family
        raise RuntimeError(f"{self.name}/{split}/{index}: no programme of regime {regime} in {TRIES} draws")

    def sample(self, split: str, index: int) -> Sample:
        """See `Task.sample`."""
        return self._render(split, index, twin=0)

    def twins(self, sample: Sample, r: int) -> list[Sample]:
        """See `Task.twins`."""
        self.check_twins(sample, r)
        return [self._render(sample.split, sample.index, twin) for twin in range(1, r + 1)]

    def _render(self, split: str, index: int, twin: int) -> Sample:
        programme, family = self.find(split, index)
        key = f"{self.name}/{split}/{index}"
        canvas = self.surface(split, stream(key, "paint", twin), programme)
        self.paint(canvas, programme)
        words = stream(key, "words")
        turns = tuple(
            # the twin number is added: neighbouring twins never share their wording
            Turn(
                word(ask, words.randrange(60) + twin),
                ask.answers,
                ask.template,
                via=tuple(canvas.parts[part] for part in ask.via),
                at=tuple(box for part in ask.at for box in canvas.parts[part]),
            )
            for ask in self.asks(programme, stream(key, "ask"))
        )
        return Sample(
            id=f"{key}~{twin}" if twin else key,
            task=self.name,
            regime=self.regime_of(index),
            split=split,
            family=family,
            index=index,
            turns=turns,
            caption=self.caption(programme),
            **self.shown(canvas),
        )

"""The tasks that show videos."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from foveate.tasks.films.changes import Change
from foveate.tasks.films.film import Film
from foveate.tasks.films.happening import Idle, Order, Times, When
from foveate.tasks.films.moving import Motion, Mover, Panning
from foveate.tasks.films.script import Script
from foveate.tasks.films.slides import Slides
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask

FRAMES = 8
LONG = (16, 32, 64)
SHORT_FILMS: tuple[Script, ...] = (
    Motion(), Mover(), Panning(), Order(), Times(), Change(), When(), Slides(), Idle(),
)  # fmt: skip
LEAST = 8  # frames that every script has room in


class Films(GeneratedTask):
    """Videos of some regimes, each a script and a number of frames.

    Args:
        name: of the task.
        regimes: name -> its script and its frames.
    Raises:
        ValueError: fewer frames than the scripts need.
    """

    shows = "video"

    def __init__(self, name: str, regimes: Mapping[str, tuple[Script, int]]) -> None:
        self.name, self.regimes, self._scripts = name, tuple(regimes), dict(regimes)
        for regime, (_, frames) in regimes.items():
            if frames < LEAST:
                raise ValueError(f"{name}: regime {regime} with {frames} frames, at least {LEAST} are needed")

    def script(self, programme: Programme) -> Script:
        """Of the programme's regime."""
        return self._scripts[programme["regime"].split("/")[1]][0]

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        script, frames = self._scripts[regime]
        programme = script.programme(rng, frames)
        return None if programme is None else {"frames": frames, **programme}

    def surface(self, split: str, rng: random.Random, programme: Programme) -> Film:
        """See `GeneratedTask.surface`."""
        return Film(split, rng, programme["frames"])

    def paint(self, canvas: Film, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        self.script(programme).paint(canvas, programme)

    def shown(self, canvas: Film) -> dict[str, Any]:
        """See `GeneratedTask.shown`."""
        clip = canvas.clip()
        return {"image": clip.middle, "clip": clip, "dense": canvas.dense()}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        return self.script(programme).asks(programme, rng)

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        return self.script(programme).caption(programme)


def video(frames: int = FRAMES) -> Films:
    """The task of short videos, at another number of frames under a name of its own. Raises: ValueError below 8."""
    name = "video" if frames == FRAMES else f"video-{frames}"
    return Films(name, {script.name: (script, frames) for script in SHORT_FILMS})


def long_video() -> Films:
    """The task of long videos in which next to nothing happens."""
    return Films("long-video", {f"idle{frames}": (Idle(), frames) for frames in LONG})

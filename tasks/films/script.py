"""A script: one regime of videos, what may happen in it and what is asked."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from foveate.tasks.films.film import Film, listed
from foveate.tasks.generated import Programme
from foveate.tasks.questions import Ask


class Script(ABC):
    """Films of things with tracks; a script with other contents paints and describes them itself.

    A programme holds `things`, one `tracks` entry for each (see `films.film`), and where the camera moves `camera`.
    """

    name: ClassVar[str]

    @abstractmethod
    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """What happens, without noise: plain data. None when this draw cannot be asked about."""

    @abstractmethod
    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """The questions, in order."""

    def paint(self, film: Film, programme: Programme) -> None:
        """Draws every frame."""
        film.roll({thing[0] for thing in programme["things"]}, programme.get("camera"))
        film.play(programme["things"], programme["tracks"])

    def caption(self, programme: Programme) -> str:
        """A short description of the content."""
        return listed(programme)

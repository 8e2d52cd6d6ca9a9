"""Rows of a pass: pictures as their family presents them, prompts entry by entry, and the shape that costs hang on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from foveate.compressors.base import Grid

TEXT, CLS, NEWLINE = -1, -2, -3
"""Positions of prompt entries that show no visual token: words and markers; an encoder's CLS; a family's newline."""


@dataclass(frozen=True)
class Film:
    """When the frames of a video are shown.

    Attributes:
        seconds: of each frame that is shown, ascending.
        duration: of the whole video.
    """

    seconds: tuple[float, ...]
    duration: float

    @property
    def rate(self) -> float:
        """Frames shown for each second of the video."""
        return len(self.seconds) / self.duration

    def at(self, which: Sequence[int] | np.ndarray) -> Film:
        """Some of the frames, ascending."""
        return Film(tuple(self.seconds[i] for i in which), self.duration)


@dataclass(frozen=True)
class FilmWords:
    """Words of a prompt that a video of several frames brings along.

    Attributes:
        by_frames: how many there are with 1, 2 ... T of the T frames of its grid, at even distances.
    """

    by_frames: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class View:
    """What methods see as one up to the projector: a picture, a tile of one, or a video.

    Attributes:
        pixels: (H, W, 3) uint8, framed as the family's image processor does it, before normalisation; of a video
            (F, H, W, 3), F a multiple of the frames of its grid.
        grid: of its tokens when nothing is compressed.
    """

    pixels: np.ndarray
    grid: Grid

    @property
    def units(self) -> tuple[View, ...]:
        """What the tower encodes by itself: each frame of its grid."""
        if self.pixels.ndim == 3:
            return (self,)
        each = len(self.pixels) // self.grid[0]
        frames = self.pixels.reshape(self.grid[0], each, *self.pixels.shape[1:])
        return tuple(View(frame[0] if each == 1 else frame, (1, *self.grid[1:])) for frame in frames)

    @property
    def n(self) -> int:
        """Number of tokens."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, eq=False)
class Framed:
    """One picture or video as its family presents it, and what stands in the prompt in place of its marker.

    Attributes:
        views: one or more.
        ids: token ids of its k entries.
        view: (k,) which of its views an entry shows, from 0; -1 = none.
        position: (k,) flat index into that view's grid; `TEXT`, `CLS` (of the view named) or `NEWLINE` else.
        size: (height, width) of the picture as it was given.
        layout: what else the family needs to lay the picture out at other grids, where that tells costs apart.
        mixed: behind the projector, entries hold mixtures of the tokens of its views (see `Host.mixed`).
        film: of a video: when its frames are shown; None = a picture.
    """

    views: tuple[View, ...]
    ids: tuple[int, ...]
    view: np.ndarray
    position: np.ndarray
    size: tuple[int, int]
    layout: Hashable | None = None
    mixed: bool = False
    film: Film | None = None

    @property
    def kind(self) -> str:
        """What its chat template calls it: "image" or "video"."""
        return "image" if self.film is None else "video"


@dataclass(frozen=True)
class PromptShape:
    """All of a row that costs depend on.

    Attributes:
        n_text: prompt entries that are no visual token: words, markers, newlines; not a CLS that the decoder reads.
        grids: of each view.
        shown: of each view: the grid of those of its tokens that prompt entries show, rows and columns of its own; () =
            all of them everywhere.
        newlines: how many of `n_text` are newlines, which a row without its pictures has not.
        mixed: of each view: whether its picture's entries are mixtures of tokens, see `Framed`; () = nowhere.
        layouts: of each picture, see `Framed`; () = none needs any.
        phrases: tokens of each phrase of the question for the text tower; None = not known, or no text tower.
        before: how many of `n_text` stand in front of the visual tokens; 0 where that is not known, None where some
            stand between these. Shapes that differ in nothing else are one: most costs do not depend on it.
    """

    n_text: int
    grids: tuple[Grid, ...]
    shown: tuple[Grid, ...] = ()
    newlines: int = 0
    mixed: tuple[bool, ...] = ()
    layouts: tuple[Hashable, ...] = ()
    phrases: tuple[int, ...] | None = None
    before: int | None = field(default=0, compare=False)

    @property
    def bare(self) -> PromptShape:
        """The same without words, but for newlines: what legality hangs on, budget apart."""
        layouts = tuple(None if isinstance(layout, FilmWords) else layout for layout in self.layouts)
        known = any(layout is not None for layout in layouts)
        bare = replace(self, n_text=self.newlines + 1, layouts=layouts if known else (), phrases=None)
        return replace(bare, before=None if self.before is None else 0)

    @property
    def frames(self) -> int:
        """Frames of the view that has fewest: above 1 where all are videos."""
        return min((t for t, _, _ in self.grids), default=1)

    @property
    def n_tokens(self) -> int:
        """Tokens of all views behind an untouched tower."""
        return sum(t * h * w for t, h, w in self.grids)

    @property
    def n_visual(self) -> int:
        """Tokens that reach the prompt when nothing is compressed."""
        return sum(t * h * w for t, h, w in self.shown or self.grids)


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt with its pictures. S entries, as the HF processor expands them.

    Attributes:
        pictures: as framed, in the order of the prompt.
        question: as asked.
        prompt: the text that the model sees, one image marker in it for each picture.
        ids: (S,) int64 token id of each entry.
        view: (S,) int64 which of the row's `views` an entry shows; -1 = none.
        position: (S,) int64 flat index into that view's grid; `TEXT`, `CLS` or `NEWLINE` else.
        place: (S, P) int64 position ids in the decoder: P = 1, or 3 (time, row, column) where it rotates by three.
        seed: 63 bits of the SHA-256 of the framed views and the question.
        phrases: as in `PromptShape`.
    """

    pictures: tuple[Framed, ...]
    question: str
    prompt: str
    ids: np.ndarray
    view: np.ndarray
    position: np.ndarray
    place: np.ndarray
    seed: int
    phrases: tuple[int, ...] | None = None

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Of all pictures."""
        return tuple(view for picture in self.pictures for view in picture.views)

    @cached_property
    def shape(self) -> PromptShape:
        """What costs depend on."""
        grids = tuple(view.grid for view in self.views)
        shown = tuple(extent(entry.reshape(grid) >= 0) for entry, grid in zip(self.entries, grids, strict=True))
        newlines = int((self.position == NEWLINE).sum())
        mixed = tuple(picture.mixed for picture in self.pictures for _ in picture.views)
        layouts = tuple(picture.layout for picture in self.pictures)
        return PromptShape(
            n_text=len(self.text),
            grids=grids,
            shown=() if shown == grids else shown,
            newlines=newlines,
            mixed=mixed if any(mixed) else (),
            layouts=layouts if any(layout is not None for layout in layouts) else (),
            phrases=self.phrases,
            before=self._before,
        )

    @property
    def _before(self) -> int | None:
        """See `PromptShape.before`."""
        seen = np.flatnonzero(self.position >= 0)
        inside = (self.text > seen[0]) & (self.text < seen[-1]) if len(seen) else np.zeros(1, bool)
        return None if inside.any() else int((self.text < next(iter(seen), 0)).sum())

    @cached_property
    def entries(self) -> tuple[np.ndarray, ...]:
        """Of each view: (n,) int64 which prompt entry shows each of its tokens; -1 = none does."""
        found = []
        for number, view in enumerate(self.views):
            at = np.flatnonzero((self.view == number) & (self.position >= 0))
            entry = np.full(view.n, -1)
            entry[self.position[at]] = at
            found.append(entry)
        return tuple(found)

    @cached_property
    def first(self) -> tuple[int, ...]:
        """Of each view: the first entry that shows a token of it; 0 where none does."""
        return tuple(int(next(iter(entry[entry >= 0]), 0)) for entry in self.entries)

    @cached_property
    def places(self) -> tuple[np.ndarray, ...]:
        """Of each view: (n, P) position ids of its tokens, from those of its first; of one without an entry, of that
        before it."""
        shown = (
            np.maximum.accumulate(np.maximum(entry, at)) for entry, at in zip(self.entries, self.first, strict=True)
        )
        return tuple(self.place[entry] - self.place[at] for entry, at in zip(shown, self.first, strict=True))

    @cached_property
    def cls(self) -> dict[int, int]:
        """View -> the entry of its CLS, where the decoder reads it."""
        return {int(self.view[at]): int(at) for at in np.flatnonzero(self.position == CLS)}

    @cached_property
    def text(self) -> np.ndarray:
        """Entries that show no visual token and no CLS: words, markers, newlines."""
        return np.flatnonzero((self.position == TEXT) | (self.position == NEWLINE))

    @cached_property
    def next_place(self) -> int:
        """The position id, in every coordinate, of the first token behind the prompt."""
        return int(self.place.max()) + 1


def extent(mask: np.ndarray) -> Grid:
    """The grid of what a mask (T, H, W) leaves of a grid, whole frames, rows and columns of it."""
    t, h, w = (int(mask.any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1)))
    return t, h, w

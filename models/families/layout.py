"""How a picture that is cut into tiles reaches the prompt: sizes and places, no pixels; see `families.anyres`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.inputs import NEWLINE

Size = tuple[int, int]
"""(height, width), in pixels or in tokens."""

SHRINK_ABOVE = 1.1
"""A map is shrunk where its side is more than this times what it may be."""


def best_resolution(size: Size, choices: Sequence[Sequence[int]]) -> Size:
    """The resolution that a picture of this size is padded to: most of its pixels kept, then least of them wasted.

    Args:
        size: of the picture.
        choices: (height, width) of each; the first of equals wins.
    """
    height, width = size

    def worth(choice: Sequence[int]) -> tuple[int, int]:
        scale = min(choice[1] / width, choice[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - choice[0] * choice[1]

    best = max(choices, key=worth)
    return best[0], best[1]


def covered(size: Size, whole: Size) -> tuple[Size, Size]:
    """Which part of a map a padded picture covers: (top, left) and (rows, columns).

    Args:
        size: of the picture, in pixels.
        whole: of the map, in tokens.
    """
    (height, width), (rows, columns) = size, whole
    if width / height > columns / rows:
        pad = (rows - int(round(height * (columns / width), 7))) // 2
        return (pad, 0), (rows - 2 * pad, columns)
    pad = (columns - int(round(width * (rows / height), 7))) // 2
    return (0, pad), (rows, columns - 2 * pad)


def shrunk(size: Size, most: float) -> Size:
    """What a map becomes that may have `most` tokens: the same, or smaller where it is clearly larger."""
    ratio = math.sqrt(size[0] * size[1] / most)
    return (int(size[0] // ratio), int(size[1] // ratio)) if ratio > SHRINK_ABOVE else size


@dataclass(frozen=True)
class Layout:
    """How one picture reaches the prompt: its view of all (view 0), then the map of its tiles (views 1, 2 ...).

    Attributes:
        size: of the picture before any resizing, in pixels.
        tiles: rows and columns of tiles; (0, 0) = the picture is its view 0 alone, with one newline behind it.
        grid: of each view's tokens.
        most_tiles: a map with the tokens of clearly more than these is shrunk to them; None = never.
    """

    size: Size
    tiles: Size
    grid: Grid
    most_tiles: int | None = None

    @cached_property
    def part(self) -> tuple[Size, Size]:
        """What of the map is not padding: its first row and column, its rows and columns."""
        return covered(self.size, (self.tiles[0] * self.grid[1], self.tiles[1] * self.grid[2]))

    @cached_property
    def out(self) -> Size:
        """Rows and columns that the prompt shows: those of `part`, unless the map is shrunk."""
        if self.most_tiles is None or not all(self.part[1]):
            return self.part[1]
        return shrunk(self.part[1], self.most_tiles * self.grid[1] * self.grid[2])

    @property
    def n_views(self) -> int:
        """Views that the tower encodes."""
        return 1 + self.tiles[0] * self.tiles[1]

    @property
    def newlines(self) -> int:
        """Newline entries."""
        return 1 if self.n_views == 1 else self.out[0]

    @property
    def is_shrunk(self) -> bool:
        """Whether entries of the map are mixtures of tokens."""
        return self.n_views > 1 and self.out != self.part[1]

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the map whose tokens stand nearest to the rows and columns that the prompt shows."""
        rows, columns = (
            start + ((2 * np.arange(out) + 1) * n) // max(2 * out, 1)
            for start, n, out in zip(*self.part, self.out, strict=True)
        )
        return rows, columns

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """(S,) int64 each: the view and the flat index in its grid that an entry shows; (-1, NEWLINE) for a newline.

        An entry of a shrunk map shows the token nearest to it, the one that weighs most in its mixture.
        """
        _, h, w = self.grid
        views, positions = np.zeros(h * w, np.int64), np.arange(h * w)
        if self.n_views == 1:
            return np.append(views, -1), np.append(positions, NEWLINE)
        row, column = self.axes
        tile = 1 + (row // h)[:, None] * self.tiles[1] + (column // w)[None]
        inside = (row % h)[:, None] * w + (column % w)[None]
        tile, inside = (
            np.pad(of, ((0, 0), (0, 1)), constant_values=end).ravel() for of, end in ((tile, -1), (inside, NEWLINE))
        )
        return np.concatenate([views, tile]), np.concatenate([positions, inside])

    @property
    def counts(self) -> tuple[list[int], list[int]]:
        """Of each row of tiles, the rows of tokens that the prompt shows; columns alike."""
        rows, columns = (
            np.bincount(at // n, minlength=k).tolist()
            for at, n, k in zip(self.axes, self.grid[1:], self.tiles, strict=True)
        )
        return rows, columns

    def shown(self) -> tuple[Grid, ...]:
        """Of each view: the grid of those of its tokens that the prompt shows."""
        if self.n_views == 1:
            return (self.grid,)
        rows, columns = self.counts
        return (self.grid, *((1, h, w) if h and w else (0, 0, 0) for h in rows for w in columns))

    def mixed(self, x: Tensor) -> list[Tensor]:
        """What a shrunk map's entries hold, tile by tile: all tokens (tiles, n, D) -> (h * w of `shown`, D) each."""
        (rows, columns), (_, h, w), ((top, left), (height, width)) = self.tiles, self.grid, self.part
        whole = x.unflatten(1, (h, w)).unflatten(0, (rows, columns)).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
        part = whole[:, top : top + height, left : left + width]
        small = F.interpolate(part[None], self.out, mode="bilinear")[0]
        down, across = self.counts
        return [piece.flatten(1).T for band in small.split(down, dim=1) for piece in band.split(across, dim=2)]


@dataclass(frozen=True)
class FilmLayout:
    """How a video reaches the prompt: the map of each frame at half its sides, bilinearly, and one newline behind all.

    Attributes:
        grid: of its tokens.
    """

    grid: Grid
    n_views: ClassVar[int] = 1
    newlines: ClassVar[int] = 1

    @property
    def out(self) -> Size:
        """Rows and columns of a frame that the prompt shows."""
        return math.ceil(self.grid[1] / 2), math.ceil(self.grid[2] / 2)

    @property
    def is_shrunk(self) -> bool:
        """Whether entries are mixtures of tokens."""
        return self.out != self.grid[1:]

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Layout.entries`."""
        (t, h, w), (rows, columns) = self.grid, self.out
        row = ((2 * np.arange(rows) + 1) * h) // (2 * rows)
        column = ((2 * np.arange(columns) + 1) * w) // (2 * columns)
        position = (np.arange(t)[:, None, None] * h + row[:, None]) * w + column
        return np.append(np.zeros(position.size, np.int64), -1), np.append(position, NEWLINE)

    def shown(self) -> tuple[Grid, ...]:
        """See `Layout.shown`."""
        return ((self.grid[0], *self.out),)

    def mixed(self, x: Tensor) -> list[Tensor]:
        """What the entries hold: all tokens (1, n, D) -> (shown, D)."""
        maps = x[0].unflatten(0, self.grid).permute(0, 3, 1, 2)
        return [F.interpolate(maps, self.out, mode="bilinear").flatten(2).transpose(1, 2).flatten(0, 1)]

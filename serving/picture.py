"""A picture of what a plan kept: dropped patches dimmed, kept ones outlined; of a video a sheet of its frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from foveate.compressors.base import Grid
from foveate.models.boxes import WHOLE, Box, inside
from foveate.models.inputs import Inputs, Pictures, Row, View
from foveate.models.rows import Film
from foveate.plans.plan import Plan, keep_count
from foveate.tasks.clip import Clip, middles

if TYPE_CHECKING:
    from foveate.models.host import Host

DIMMED = 0.3
"""What is left of a dropped patch's brightness."""

OUTLINE = (255, 170, 0)
SHORTEST = 512
"""Pixels along the shorter side at least: a small picture is enlarged, so that outlines hide nothing."""

LONGEST, MOST = 4096, 1024
"""Pixels along the longer side: a small picture is not enlarged beyond them; no panel among several exceeds them."""

GAP, BETWEEN = 16, 48
"""Pixels between the two halves of a panel, and between panels."""

FRAME, MOST_FRAMES = 224, 64
"""Pixels along the longer side of a video's frame, and frames of its sheet; of more, as many at even distances."""

Kept = tuple[Grid, Sequence[int]]
"""A view's grid of tokens, and the flat index into it of each that is kept; -1 has no place of its own."""


@dataclass(frozen=True, eq=False)
class Strip:
    """A video to be drawn.

    Attributes:
        frames: (F, H, W, 3) uint8.
        unit: (F,) which frame of the tokens' grid shows each; -1 = none, the plan leaves it out.
    """

    frames: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(cls, clip: Clip, film: Film, view: View, frames: int) -> Strip:
        """A clip as a model saw it.

        Args:
            clip: as it was given.
            film: when the frames that were shown are shown.
            view: what was made of them.
            frames: of the grid that the tokens ended on, fewer where a method made one of several.
        """
        unit, t = np.full(len(clip.frames), -1), view.grid[0]
        together = len(view.pixels) // t
        at = np.searchsorted(clip.seconds, film.seconds)
        unit[at] = np.arange(len(at)) // together * frames // t
        return cls(clip.frames, unit)


def row_picture(
    host: Host, shown: Pictures, question: str, plan: Plan, kept: Sequence[tuple[Grid, Sequence[int]]]
) -> Image.Image:
    """What a row shows, with the tokens that are left of it in the end.

    Args:
        host: which has answered.
        shown: a picture, a video, or several.
        question: as asked.
        plan: what was done.
        kept: of each view, see `Kept`.
    Raises:
        BadInput: a row that cannot be put to the model.
    """
    row, left = host.inputs.row(shown, question, 0), iter(kept)
    each = [[next(left) for _ in picture.views] for picture in row.pictures]
    given = list(shown) if isinstance(shown, (list, tuple)) else [shown]
    drawn = []
    for one, picture, views in zip(given, _laid(host, row, plan).pictures, each, strict=True):
        if picture.film is None:
            drawn.append(one)
            continue
        clip = one if isinstance(one, Clip) else Clip.of(one)
        drawn.append(Strip.of(clip, picture.film, picture.views[0], views[0][0][0]))
    return kept_panels(drawn, places(host.inputs, row), each)


def _laid(host: Host, row: Row, plan: Plan) -> Row:
    """The row as a plan's input stage presents it."""
    choice = plan["input"]
    if choice.is_none or plan.is_blind:
        return row
    knob = host.make("input", choice.method)
    return host.relaid(row, [host.resized(knob, view.grid, keep_count(view.n, choice.keep)) for view in row.views])


def kept_picture(image: np.ndarray, grid: Grid, positions: Sequence[int]) -> Image.Image:
    """One picture whose tokens lie over all of it, with the kept ones marked.

    Args:
        image: (H, W, 3) uint8.
        grid: (1, h, w) of the tokens.
        positions: see `Kept`; tokens without a place are not drawn.
    Raises:
        ValueError: the grid is no single picture's, or a position lies outside it.
    """
    return _marked(_enlarged(image), [(WHOLE, (grid, positions))])


def kept_panels(
    pictures: Sequence[np.ndarray | Strip], boxes: Sequence[Sequence[Box]], kept: Sequence[Sequence[Kept]]
) -> Image.Image:
    """What a row shows, with the kept tokens of each of its views where they lie.

    Each picture is a panel. One that is cut into tiles beside a view of all of it has its tiles on the left, each in
    its place, and on the right the same picture with the tokens of that view. What no view covers is dimmed. A video
    is a sheet of its frames, row by row.

    Args:
        pictures: (H, W, 3) uint8, as they were given; or videos.
        boxes: of each picture: where its views lie in it.
        kept: of each picture: of its views, in the same order.
    Raises:
        ValueError: see `kept_picture`; or not the same numbers of pictures, or of views of one.
    """
    several = len(pictures) > 1
    rows = []
    for image, places, views in zip(pictures, boxes, kept, strict=True):
        if isinstance(image, Strip):
            rows.append([_sheet(image, places[0], views[0])])
            continue
        canvas, each = _enlarged(image, several), list(zip(places, views, strict=True))
        parts = [view for view in each if view[0] != WHOLE]
        whole = [view for view in each if view[0] == WHOLE]
        rows.append([_marked(canvas, some) for some in (parts, whole) if some])
    return _squared([_beside(row) for row in rows], BETWEEN)


def _sheet(strip: Strip, box: Box, kept: Kept) -> Image.Image:
    """Frames of a video, each with the tokens of its part of the grid; one that was left out has none."""
    (_, h, w), positions = kept[0], np.asarray(kept[1], np.int64)
    panels = []
    for at in middles(MOST_FRAMES, len(strip.frames)).tolist():
        frame = Image.fromarray(strip.frames[at])
        scale = FRAME / max(frame.size)
        frame = frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))))
        own = positions[(positions >= 0) & (positions // (h * w) == strip.unit[at])]
        panels.append(_marked(frame, [(box, ((1, h, w), (own % (h * w)).tolist()))]))
    return _squared(panels, GAP)


def _squared(panels: Sequence[Image.Image], gap: int) -> Image.Image:
    """Panels in about as many lines as stand in a line; a single one as it is."""
    across = math.ceil(math.sqrt(len(panels)))
    lines = [_beside(panels[at : at + across], gap) for at in range(0, len(panels), across)]
    return _beside(lines, gap, down=True)


def places(inputs: Inputs, row: Row) -> list[list[Box]]:
    """Of each picture of a row: where those tokens of its views lie that the prompt shows."""
    entries, found = iter(row.entries), []
    for picture in row.pictures:
        boxes = zip(inputs.boxes(picture), picture.views, strict=True)
        found.append([inside(box, _shown((next(entries).reshape(view.grid) >= 0).any(0))) for box, view in boxes])
    return found


def _shown(mask: np.ndarray) -> Box:
    """The part of a grid (h, w) that holds all marked tokens; of none, a point."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    h, w = mask.shape
    return columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Writes a picture to a file; the suffix is the format.

    Raises:
        ValueError: an unknown suffix.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"picture {str(path)!r}: the suffix must be .png, .jpg or .webp")
    picture.save(path)


def _enlarged(image: np.ndarray, several: bool = False) -> Image.Image:
    """The picture, a whole number of times as large where it is small; among several, a large one is made smaller."""
    height, width = image.shape[:2]
    most = MOST if several else LONGEST
    scale = max(1, -(-SHORTEST // min(height, width)))
    scale = max(1, min(scale, most // max(height, width)))  # a strip stays a strip of bearable length
    if several:
        scale = min(scale, most / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _marked(picture: Image.Image, views: Sequence[tuple[Box, Kept]]) -> Image.Image:
    """The picture with the kept tokens of some views bright and outlined, all else dimmed."""
    bright = np.zeros((picture.height, picture.width, 1), bool)
    cells = [cell for box, (grid, positions) in views for cell in _cells(picture.size, box, grid, positions)]
    for left, top, right, bottom in cells:
        bright[top:bottom, left:right] = True
    pixels = np.asarray(picture)
    canvas = Image.fromarray(np.where(bright, pixels, (pixels * DIMMED).astype(np.uint8)))
    draw, thickness = ImageDraw.Draw(canvas), max(1, min(canvas.size) // 256)
    for left, top, right, bottom in cells:
        if right - left > 1 and bottom - top > 1:  # a patch thinner than its outline is only left bright
            draw.rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE, width=thickness)
    return canvas


def _cells(size: tuple[int, int], box: Box, grid: Grid, positions: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom pixel of each kept token; right and bottom excluded, what is padding cut off."""
    frames, rows, columns = grid
    if frames != 1:
        raise ValueError(f"grid: {grid} has {frames} frames, a single picture is drawn")
    kept = sorted({int(p) for p in positions if p >= 0})
    if kept and kept[-1] >= rows * columns:
        raise ValueError(f"positions: {kept[-1]} lies outside a grid of {rows} x {columns}")
    xs, ys = _edges(size[0], box[0], box[2], columns), _edges(size[1], box[1], box[3], rows)
    return [(xs[p % columns], ys[p // columns], xs[p % columns + 1], ys[p // columns + 1]) for p in kept]


def _edges(length: int, start: float, end: float, cells: int) -> list[int]:
    """Where cells between two parts of a side begin and end: cells + 1 pixel positions."""
    return [min(length, max(0, round(length * (start + (end - start) * i / cells)))) for i in range(cells + 1)]


def _beside(pictures: Sequence[Image.Image], gap: int = GAP, down: bool = False) -> Image.Image:
    """Pictures side by side, or one below the other, on white; a single one as it is."""
    if len(pictures) == 1:
        return pictures[0]
    along, across = (1, 0) if down else (0, 1)
    size = [0, 0]
    size[along] = sum(picture.size[along] for picture in pictures) + gap * (len(pictures) - 1)
    size[across] = max(picture.size[across] for picture in pictures)
    canvas, at = Image.new("RGB", (size[0], size[1]), "white"), 0
    for picture in pictures:
        canvas.paste(picture, (0, at) if down else (at, 0))
        at += picture.size[along] + gap
    return canvas

"""A picture of what a plan kept: dropped patches dimmed, kept ones outlined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from foveate.compressors.base import Grid
from foveate.models.boxes import WHOLE, Box, inside
from foveate.models.inputs import Inputs, Row

DIMMED = 0.3
"""What is left of a dropped patch's brightness."""

OUTLINE = (255, 170, 0)
SHORTEST = 512
"""Pixels along the shorter side at least: a small picture is enlarged, so that outlines hide nothing."""

LONGEST, MOST = 4096, 1024
"""Pixels along the longer side: a small picture is not enlarged beyond them; no panel among several exceeds them."""

GAP, BETWEEN = 16, 48
"""Pixels between the two halves of a panel, and between panels."""

Kept = tuple[Grid, Sequence[int]]
"""A view's grid of tokens, and the flat index into it of each that is kept; -1 has no place of its own."""


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
    pictures: Sequence[np.ndarray], boxes: Sequence[Sequence[Box]], kept: Sequence[Sequence[Kept]]
) -> Image.Image:
    """What a row shows, with the kept tokens of each of its views where they lie.

    Each picture is a panel. One that is cut into tiles beside a view of all of it has its tiles on the left, each in
    its place, and on the right the same picture with the tokens of that view. What no view covers is dimmed.

    Args:
        pictures: (H, W, 3) uint8, as they were given.
        boxes: of each picture: where its views lie in it.
        kept: of each picture: of its views, in the same order.
    Raises:
        ValueError: see `kept_picture`; or not the same numbers of pictures, or of views of one.
    """
    several = len(pictures) > 1
    rows = []
    for image, places, views in zip(pictures, boxes, kept, strict=True):
        canvas, each = _enlarged(image, several), list(zip(places, views, strict=True))
        parts = [view for view in each if view[0] != WHOLE]
        whole = [view for view in each if view[0] == WHOLE]
        rows.append([_marked(canvas, some) for some in (parts, whole) if some])
    panels = [_beside(row) for row in rows]
    if not several:
        return panels[0]
    across = math.ceil(math.sqrt(len(panels)))
    lines = [_beside(panels[at : at + across], BETWEEN) for at in range(0, len(panels), across)]
    return _beside(lines, BETWEEN, down=True)


def places(inputs: Inputs, row: Row) -> list[list[Box]]:
    """Of each picture of a row: where those tokens of its views lie that the prompt shows."""
    entries, found = iter(row.entries), []
    for picture in row.pictures:
        boxes = zip(inputs.boxes(picture), picture.views, strict=True)
        found.append([inside(box, _shown(next(entries).reshape(view.grid[1:]) >= 0)) for box, view in boxes])
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

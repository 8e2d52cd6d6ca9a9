"""A picture of what a plan kept: dropped patches dimmed, kept ones outlined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from foveate.compressors.base import Grid

DIMMED = 0.3
"""What is left of a dropped patch's brightness."""

OUTLINE = (255, 170, 0)
SHORTEST = 512
"""Pixels along the shorter side at least: a small picture is enlarged, so that outlines hide nothing."""


def kept_picture(image: np.ndarray, grid: Grid, positions: Sequence[int]) -> Image.Image:
    """The picture with the kept tokens marked.

    Args:
        image: (H, W, 3) uint8, as the model saw it: the grid lies over all of it.
        grid: (1, h, w) of the tokens.
        positions: flat index into the grid of each kept token. Tokens without a place of their own (-1) are not drawn.
    Raises:
        ValueError: the grid is no single picture's, or a position lies outside it.
    """
    frames, rows, columns = grid
    if frames != 1:
        raise ValueError(f"grid: {grid} has {frames} frames, a single picture is drawn")
    kept = sorted({int(p) for p in positions if p >= 0})
    if kept and kept[-1] >= rows * columns:
        raise ValueError(f"positions: {kept[-1]} lies outside a grid of {rows} x {columns}")
    height, width = image.shape[:2]
    scale = max(1, -(-SHORTEST // min(height, width)))
    scale = max(1, min(scale, 4096 // max(height, width)))  # a strip stays a strip of bearable length
    large = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    ys, xs = _edges(large.height, rows), _edges(large.width, columns)
    bright = np.zeros((large.height, large.width, 1), bool)
    boxes = [divmod(p, columns) for p in kept]
    for row, column in boxes:
        bright[ys[row] : ys[row + 1], xs[column] : xs[column + 1]] = True
    pixels = np.asarray(large)
    canvas = Image.fromarray(np.where(bright, pixels, (pixels * DIMMED).astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    thickness = max(1, min(canvas.size) // 256)
    for row, column in boxes:
        corners = (xs[column], ys[row], xs[column + 1] - 1, ys[row + 1] - 1)
        if corners[2] > corners[0] and corners[3] > corners[1]:  # a patch thinner than its outline is only left bright
            draw.rectangle(corners, outline=OUTLINE, width=thickness)
    return canvas


def save_kept_picture(path: str | Path, image: np.ndarray, grid: Grid, positions: Sequence[int]) -> None:
    """Writes `kept_picture` to a file; the suffix is the format.

    Raises:
        ValueError: an unknown suffix, or see `kept_picture`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"picture {str(path)!r}: the suffix must be .png, .jpg or .webp")
    kept_picture(image, grid, positions).save(path)


def _edges(length: int, cells: int) -> list[int]:
    """Where cells begin and end along a side: cells + 1 pixel positions."""
    return [round(i * length / cells) for i in range(cells + 1)]

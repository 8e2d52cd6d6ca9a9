"""Where the views of a picture lie in it."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as parts of a picture's sides; what lies beyond 0 and 1 is padding."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
"""All of a picture."""


def tiles(rows: int, columns: int) -> list[Box]:
    """Equal parts of a picture, row by row."""
    return [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]


def padded_to(size: tuple[int, int], whole: tuple[int, int], boxes: Sequence[Box]) -> list[Box]:
    """Parts of a padded picture as parts of the picture in its middle.

    Args:
        size: (height, width) of the picture.
        whole: height and width of what it is enlarged or shrunk into, in any unit.
        boxes: parts of that.
    """
    scale = min(whole[0] / size[0], whole[1] / size[1])
    high, wide = whole[0] / scale / size[0], whole[1] / scale / size[1]
    return [
        (0.5 + (left - 0.5) * wide, 0.5 + (top - 0.5) * high, 0.5 + (right - 0.5) * wide, 0.5 + (bottom - 0.5) * high)
        for left, top, right, bottom in boxes
    ]


def inside(box: Box, part: Box) -> Box:
    """A part of a part."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    return left + wide * part[0], top + high * part[1], left + wide * part[2], top + high * part[3]

"""Smaller grids of the same shape: which h x w a square ratio r can give."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

HALF = Fraction(1, 2)


@lru_cache(maxsize=256)
def shrunk(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """All grids h x w with h = clip(round(H * s), 1, H) and w = clip(round(W * s), 1, W), s = sqrt(r), ascending.

    `round` is Python's (halves to even). Exact arithmetic: both axes change only at s = (k + 1/2) / H or (k + 1/2) / W,
    so the grids at those points and just above them are all there are.
    """
    steps = {(k + HALF) / axis for axis in (height, width) for k in range(axis)}
    grids = {(1, 1)}
    for s in steps:
        at = (round(height * s), round(width * s))
        above = (int(height * s + HALF), int(width * s + HALF))
        grids |= {(min(max(h, 1), height), min(max(w, 1), width)) for h, w in (at, above)}
    return tuple(sorted(grids))


def largest(height: int, width: int, count: int) -> tuple[int, int]:
    """The largest of `shrunk(height, width)` with at most `count` cells."""
    return max(
        (grid for grid in shrunk(height, width) if grid[0] * grid[1] <= count), key=lambda grid: grid[0] * grid[1]
    )

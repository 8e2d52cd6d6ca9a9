"""Downsample: present a smaller image, the oldest way to fewer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.compressors.base import Grid, InputKnob
from foveate.compressors.grids import largest, shrunk
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Downsample(InputKnob):
    """Shrink the image so that its grid of tokens keeps its shape and fits the count.

    Paper:   none; the down-sampling control that every point of a trade-off has to beat.
    Code:    none.
    Formula: h = clip(round(H s), 1, H), w = clip(round(W s), 1, W) with the largest s such that h w <= count / T
    Shapes:  grid (T, H, W) -> (T, h, w)
    Cost:    no matrix product; everything after the pixels gets cheaper, the encoder included.
    Differs: nothing known.

    Args: none.
    Raises:
        ValueError: `count` is below T: frames are kept, each with at least one token.
    """

    name = "downsample"
    stages = ("input",)
    paper = "none (control)"
    fidelity = "reference"

    def target(self, grid: Grid, count: int) -> Grid:
        t, h, w = grid
        if count < t:
            raise ValueError(f"downsample: count {count} is below {t}, one token for each frame")
        return (t, *largest(h, w, count // t))

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, height, width = grid
        return [t * h * w for h, w in shrunk(height, width)]

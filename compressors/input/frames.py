"""Frames: show fewer frames of a video, the oldest way to shorten it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.compressors.base import Grid, InputKnob
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Frames(InputKnob):
    """Show n of a video's T frames, at even distances and at their full size.

    Paper:   none; uniform sampling, the control that every method across time has to beat.
    Code:    none.
    Formula: n = floor(count / (H W)); of F frames the middles of n equal parts are shown: floor((2 i + 1) F / (2 n))
    Shapes:  grid (T, H, W) -> (n, H, W)
    Cost:    no matrix product; everything after the pixels gets cheaper, the encoder and the words about left-out
             frames included.
    Differs: nothing known. T counts the frames of the grid: where a token spans two frames of the video, n asks for
             2 n of them, so that the rest is what the model makes of a video of those frames.

    Args: none.
    Raises:
        ValueError: `count` is below H W, one whole frame.
    """

    name = "frames"
    stages = ("input",)
    modality = "video"
    paper = "none (control)"
    fidelity = "reference"

    def target(self, grid: Grid, count: int) -> Grid:
        t, h, w = grid
        if count < h * w:
            raise ValueError(f"frames: count {count} is below {h * w}, one whole frame of grid {grid}")
        return min(t, count // (h * w)), h, w

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, h, w = grid
        return range(h * w, t * h * w + 1, h * w)

"""FastVLM: choose the resolution that the encoder sees, from a short ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.compressors.base import Grid, InputKnob
from foveate.compressors.registry import register

FULL = 16
"""Tokens on a side at the published default of 1024 px, one for each 64 px."""


@register
@dataclass(frozen=True)
class FastVLM(InputKnob):
    """Resize the picture to the largest rung of a ladder of resolutions whose grid fits the count.

    Paper:   Vasu et al., "FastVLM: Efficient Vision Encoding for Vision Language Models", CVPR 2025,
             https://arxiv.org/abs/2412.13303
    Code:    https://github.com/apple/ml-fastvlm (read at 592b4ad)
    Formula: rung r in 4, 6, 8, 12, 16 (256, 384, 512, 768, 1024 px at 64 px a token): h = round(H r / 16),
             w = round(W r / 16), both at least 1; the largest rung with T h w <= count
    Shapes:  grid (T, H, W) -> (T, h, w)
    Cost:    no matrix product; everything after the pixels gets cheaper, the encoder included.
    Differs: only the paper's static resizing is here: the tokens come from the host's own encoder, with its position
             embeddings interpolated, not from FastViTHD, whose five-stage convolution-attention network was trained
             with it. Pixels are resized as the host resizes them, not cropped to a square.

    Args:
        ladder: tokens on a side of each rung, of `FULL`, ascending.
    Raises:
        ValueError: a ladder that does not ascend inside 1..16, or a `count` below the lowest rung.
    """

    ladder: tuple[int, ...] = (4, 6, 8, 12, 16)

    name = "fastvlm"
    stages = ("input",)
    paper = "Vasu et al., CVPR 2025, https://arxiv.org/abs/2412.13303"
    fidelity = "reconstruction"

    def __post_init__(self) -> None:
        if list(self.ladder) != sorted(set(self.ladder)) or not self.ladder or not 1 <= self.ladder[0] <= FULL:
            raise ValueError(f"fastvlm: ladder {self.ladder} does not ascend from 1 or more")
        if self.ladder[-1] > FULL:
            raise ValueError(f"fastvlm: ladder {self.ladder} goes beyond {FULL}, the picture's own resolution")

    def target(self, grid: Grid, count: int) -> Grid:
        fitting = [g for g in self._rungs(grid) if g[0] * g[1] * g[2] <= count]
        if not fitting:
            t, h, w = self._rungs(grid)[0]
            raise ValueError(f"fastvlm: count {count} is below {t * h * w}, the lowest rung of grid {grid}")
        return fitting[-1]

    def reachable(self, grid: Grid) -> Sequence[int]:
        return sorted({t * h * w for t, h, w in self._rungs(grid)})

    def _rungs(self, grid: Grid) -> list[Grid]:
        """The grid at each rung, ascending; halves round up."""
        t, height, width = grid
        side = lambda tokens, rung: max(1, (2 * tokens * rung + FULL) // (2 * FULL))  # noqa: E731
        return [(t, side(height, rung), side(width, rung)) for rung in self.ladder]

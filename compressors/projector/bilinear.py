"""Interpolation: resize the map of projected tokens, in the picture or along time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.functional import interpolate

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.planes import counts, planes, raster, side
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Bilinear(Resampler):
    """Resize each frame's map of projected tokens to h x w by bilinear interpolation, or a clip to fewer frames.

    Paper:   Li et al. (LLaVA-OneVision), 2024, https://arxiv.org/abs/2408.03326
    Code:    https://github.com/LLaVA-VL/LLaVA-NeXT, llava/model/llava_arch.py
    Formula: slot i of h is read at row (i + 1/2) H / h - 1/2, between the two rows beside it, columns likewise; no
             smoothing before: at h = H / 2 the mean of 2 x 2 tokens, at H / 3 the middle one of 3 x 3, at H / 4 the
             mean of the middle 2 x 2 of 4 x 4
    Shapes:  x (B, T H W, D) -> (B, T h w, D), raster order
    Cost:    no matrix product: additions only.
    Differs: the code's sides are ceil(H / 2) and ceil(W / 2); here any smaller grid of the shape, theirs among them.
             The code interpolates no frames. No newline tokens.

    Args:
        axis: "space" = within each frame, "time" = between frames, each place by itself.
    Raises:
        ValueError: `axis` is unknown, tokens are not a whole grid, or `count` is not that of one of the smaller grids.
    """

    name = "bilinear"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "after"
    paper = "Li et al., 2024, https://arxiv.org/abs/2408.03326"
    fidelity = "reference"

    axis: str = "space"

    def __post_init__(self) -> None:
        if self.axis not in ("space", "time"):
            raise ValueError(f"bilinear: axis {self.axis!r} is neither 'space' nor 'time'")

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, height, width = grid
        return counts(grid) if self.axis == "space" else [frames * height * width for frames in range(1, t + 1)]

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        x, (t, height, width) = planes(self.name, tokens), tokens.grid
        if self.axis == "space":
            return raster(interpolate(x, side(tokens.grid, count), mode="bilinear", align_corners=False), tokens)
        places = x.reshape(-1, t, x[0].numel()).mT  # (B, D H W, T)
        fewer = interpolate(places, count // (height * width), mode="linear", align_corners=False)
        return raster(fewer.mT.reshape(-1, *x.shape[1:]), tokens)

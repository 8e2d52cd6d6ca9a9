"""Average pooling: the projected tokens of each cell of a coarser grid become their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import adaptive_avg_pool2d

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.grids import largest, shrunk
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class AveragePool(Resampler):
    """Mean of the tokens in each cell of an h x w grid laid over H x W, frame by frame.

    Paper:   Li et al. (LLaVA-OneVision), 2024, https://arxiv.org/abs/2408.03326
    Code:    https://github.com/LLaVA-VL/LLaVA-NeXT, llava/model/llava_arch.py
    Formula: cell i of h covers rows floor(i H / h) .. ceil((i + 1) H / h) - 1, columns likewise; slot = its mean
    Shapes:  x (B, T H W, D) -> (B, T h w, D), raster order
    Cost:    no matrix product: additions only.
    Differs: the code takes whole k x k cells and drops a last row or column that fills none; here cells may overlap by
             one row or column where h does not divide H, and no token is lost. No newline tokens.

    Args: none.
    Raises:
        ValueError: tokens are not a whole grid, or `count` is not T times one of the smaller grids of this shape.
    """

    name = "average_pool"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "after"
    paper = "Li et al., 2024, https://arxiv.org/abs/2408.03326"
    fidelity = "paper"

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, height, width = grid
        return [t * h * w for h, w in shrunk(height, width)]

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        t, height, width = tokens.grid
        if tokens.n != t * height * width:
            raise ValueError(f"average_pool: {tokens.n} tokens are not a whole {t} x {height} x {width} grid")
        h, w = largest(height, width, count // t)
        b, _, d = tokens.x.shape
        planes = tokens.x.float().view(b * t, height, width, d).permute(0, 3, 1, 2)
        pooled = adaptive_avg_pool2d(planes, (h, w)).permute(0, 2, 3, 1)  # (B * T, h, w, D)
        frames = torch.arange(t, device=tokens.x.device).view(t, 1, 1) * height
        rows, columns = _middles(h, height, frames.device).view(h, 1), _middles(w, width, frames.device)
        position = ((frames + rows) * width + columns).flatten().expand(b, -1)
        return Resampled(pooled.reshape(b, count, d).to(tokens.x.dtype), position, (t, h, w))


def _middles(cells: int, length: int, device: torch.device) -> torch.Tensor:
    """The index in the middle of each cell; of two, the lower."""
    i = torch.arange(cells, device=device)
    first, last = i * length // cells, -(-(i + 1) * length // cells) - 1
    return (first + last) // 2

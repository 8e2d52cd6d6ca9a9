"""Average pooling: the projected tokens of each cell of a coarser grid become their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.planes import counts, planes, raster, side
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
    Differs: the code takes whole k x k cells and drops a last row or column that fills none, which is cells "whole";
             by default cells may overlap by one row or column where h does not divide H, and no token is lost. The
             code's third mode, the maximum, is left out. No newline tokens.

    Args:
        cells: "overlapping" or "whole"; whole ones of k x k give floor(H / k) rows, at least one.
    Raises:
        ValueError: `cells` is unknown, tokens are not a whole grid, or `count` is not T times one of the smaller grids.
    """

    name = "average_pool"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "after"
    paper = "Li et al., 2024, https://arxiv.org/abs/2408.03326"
    fidelity = "paper"

    cells: str = "overlapping"

    def __post_init__(self) -> None:
        if self.cells not in ("overlapping", "whole"):
            raise ValueError(f"average_pool: cells {self.cells!r} is neither 'overlapping' nor 'whole'")

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts(grid) if self.cells == "overlapping" else sorted(_sides(grid))

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        x = planes(self.name, tokens)
        if self.cells == "overlapping":
            return raster(adaptive_avg_pool2d(x, side(tokens.grid, count)), tokens)
        return raster(avg_pool2d(x, _sides(tokens.grid)[count]), tokens)


def _sides(grid: Grid) -> dict[int, tuple[int, int]]:
    """Count -> rows and columns of the largest whole cell that gives it."""
    t, height, width = grid
    cells = [(min(k, height), min(k, width)) for k in range(1, max(height, width) + 1)]
    return {t * (height // h) * (width // w): (h, w) for h, w in cells}

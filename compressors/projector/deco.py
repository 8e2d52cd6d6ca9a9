"""DeCo: pool the encoder's patches, then project what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.functional import adaptive_avg_pool2d

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.planes import counts, planes, raster, side
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class DeCo(Resampler):
    """Adaptive average pooling of the encoder's features, frame by frame, before the host's own projector.

    Paper:   Yao et al., 2024, https://arxiv.org/abs/2405.20985
    Code:    https://github.com/yaolinli/DeCo (a listing)
    Formula: cell i of h covers rows floor(i H / h) .. ceil((i + 1) H / h) - 1, columns likewise; slot = P(its mean)
             with P the projector; pooling behind P gives other tokens, since P is not linear
    Shapes:  x (B, T H W, C) -> (B, T h w, C), raster order
    Cost:    no matrix product of its own, and the projector runs on the slots alone.
    Differs: the paper trains its projector with the pooling; here it is the host's, as it stands. Grids need not be
             square.

    Args: none.
    Raises:
        ValueError: tokens are not a whole grid, or `count` is not T times one of the smaller grids of this shape.
    """

    name = "deco"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "before"
    paper = "Yao et al., 2024, https://arxiv.org/abs/2405.20985"
    fidelity = "paper"

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts(grid)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        return raster(adaptive_avg_pool2d(planes(self.name, tokens), side(tokens.grid, count)), tokens)

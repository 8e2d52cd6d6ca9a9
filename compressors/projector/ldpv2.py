"""LDPv2: project, pool, and let a small depth-wise convolution mark where each pooled token stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Mlp
from foveate.compressors.planes import counts, planes, raster, side
from foveate.compressors.registry import register


class Network(nn.Module):
    """MLP and depth-wise convolution; the convolution starts at zero, so that pooling behind the MLP is all at first.

    Args:
        width: C of the tokens that come.
        out: D of those that leave.
        projector: of the host, to start from.
    """

    def __init__(self, width: int, out: int, projector: Projector) -> None:
        super().__init__()
        self.mlp = Mlp(width, out, projector)
        self.place = nn.Conv2d(out, out, 3, padding=1, groups=out)
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)

    def forward(self, maps: Tensor, cells: tuple[int, int]) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        projected = self.mlp(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        small = adaptive_avg_pool2d(projected.float(), cells).to(projected.dtype)
        return small + self.place(small)


@register
@dataclass(frozen=True)
class LDPv2(Learned, Resampler):
    """A projector of its own, mean of the projected tokens in each cell of an h x w grid, and a convolution of 3 x 3.

    Paper:   Chu et al. (MobileVLM V2), 2024, https://arxiv.org/abs/2402.03766
    Code:    https://github.com/Meituan-AutoML/MobileVLM, mobilevlm/model/vision_projector.py
    Formula: f = W2 gelu(W1 x + b1) + b2; p = mean of f in each cell; y = p + DW3x3(p) + b, zeros outside the grid
    Shapes:  x (B, T H W, C) -> (B, T h w, D), raster order
    Cost:    2 n (C D + D^2) + 18 k D for n tokens in, k out.
    Differs: the code pools to 12 x 12 whatever comes; here h x w follows from the count, so one set of weights serves
             every count. It starts from the host's own projector with the convolution at zero, which is average
             pooling; the published weights start at random and are trained together with the decoder.

    Args:
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: tokens are not a whole grid, or `count` is not T times one of the smaller grids of this shape.
    """

    name = "ldpv2"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    paper = "Chu et al., 2024, https://arxiv.org/abs/2402.03766"
    fidelity = "reference"

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual, widths.decoder, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts(grid)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        return raster(self.run(planes(self.name, tokens), side(tokens.grid, count)), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        network = self.loaded
        return network.mlp.flops(n) + 2 * 9 * count * network.place.out_channels

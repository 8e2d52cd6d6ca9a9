"""C-Abstractor (Honeybee): convolutions, a pool, convolutions again, then an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, silu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Bottleneck, Mlp, inner, stretched
from foveate.compressors.planes import counts, planes, raster, side
from foveate.compressors.registry import register


class Network(nn.Module):
    """Positions, blocks, pool, blocks, MLP. Unless published, at first: pooling before the projector.

    Args:
        widths: of the host.
        hidden: channels of the blocks.
        depth: blocks before the pool, and behind it.
        published: SiLU where the authors have it, and their start.
        projector: of the host, to start from.
    """

    def __init__(self, widths: Widths, hidden: int, depth: int, published: bool, projector: Projector) -> None:
        super().__init__()
        self.size, self.readout = widths.grid[1:], silu if published else gelu
        self.places = nn.Parameter(torch.zeros(self.size[0] * self.size[1], widths.visual))
        if published:
            nn.init.trunc_normal_(self.places, std=0.02)
        before = [widths.visual, *[hidden] * depth]
        self.before = nn.ModuleList(Bottleneck(a, hidden, published) for a in before[:-1])
        self.behind = nn.ModuleList(Bottleneck(hidden, hidden, published) for _ in range(depth))
        self.mlp = Mlp(before[-1], widths.decoder, () if published else projector)

    def forward(self, maps: Tensor, frames: int, cells: tuple[int, int]) -> Tensor:
        """(B T, C, H, W) -> (B T, D, h, w)."""
        places = stretched(self.places, self.size, maps.shape[2:]).view(*maps.shape[2:], -1)
        x = (maps.permute(0, 2, 3, 1) + places).unflatten(0, (-1, frames))
        for block in self.before:
            x = block(x)
        pooled = adaptive_avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2).float(), cells)
        x = pooled.to(x.dtype).permute(0, 2, 3, 1).unflatten(0, (-1, frames))
        for block in self.behind:
            x = block(x)
        first, second = self.mlp.layers
        return second(self.readout(first(x))).flatten(0, 1).permute(0, 3, 1, 2)

    def flops(self, n: int, count: int) -> int:
        """Of n tokens that become so many."""
        blocks = sum(b.flops(n) for b in self.before) + sum(b.flops(count) for b in self.behind)
        return blocks + self.mlp.flops(count)


@register
@dataclass(frozen=True)
class CAbstractor(Learned, Resampler):
    """RegNet blocks, adaptive average pooling to h x w in each frame, RegNet blocks, and an MLP into the decoder.

    Paper:   Cha et al. (Honeybee), CVPR 2024, https://arxiv.org/abs/2312.06742
    Code:    https://github.com/khanrc/honeybee, honeybee/projectors
    Formula: y = W2 s(W1 B(pool(B(x + e))) + b1) + b2 with B a chain of blocks x + LN(W g * a(LN(DW3x3(a(LN(V x)))))), a
             SiLU, g = sigmoid(W4 a(W3 mean + b3) + b4) a gate on channels
    Shapes:  x (B, T H W, C) -> (B, T h w, D), raster order
    Cost:    depth blocks of 4 C^2 + 18 C on each token before the pool and each one behind it; 2 k (C D + D^2).
    Differs: published blocks close with SiLU, s is SiLU, and all starts at random; by default blocks close with their
             sum, s is GELU and what blocks add starts at zero, so that it starts as pooling before the host's own
             projector. Grids need not be square, and one set of weights serves every count. The gate's mean is over
             all frames. No end tokens.

    Args:
        depth: blocks before the pool, and behind it.
        hidden: channels of the blocks, 1024 in the code; None = see `networks.inner`.
        published: the authors' network and start.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `depth` is below 0, tokens are not a whole grid, or `count` is not T times one of the smaller grids.
    """

    name = "c_abstractor"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    rate = 5e-4
    paper = "Cha et al., CVPR 2024, https://arxiv.org/abs/2312.06742"
    fidelity = "reference"

    depth: int = 3
    hidden: int | None = None
    published: bool = False

    def __post_init__(self) -> None:
        if self.depth < 0 or (self.hidden is not None and self.hidden < 1):
            raise ValueError(f"c_abstractor: depth {self.depth} is below 0, or hidden {self.hidden} below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths, self.hidden or inner(widths.visual), self.depth, self.published, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts(grid)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        return raster(self.run(planes(self.name, tokens), tokens.grid[0], side(tokens.grid, count)), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(n, count)

"""LLaVA-STF: many depths of the tower become one map, and each block of that map becomes one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.blocks import Block, block_counts, block_of, padded, shuffled, squares
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.levels import level_signals, level_states
from foveate.compressors.networks import Mlp, linear_flops
from foveate.compressors.planes import check_whole, raster
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal

LEVELS = tuple((block, 23) for block in (20, 17, 14, 11, 8, 5, 2))
"""Blocks of CLIP-L, of whose 24 blocks 23 run, in the order in which they follow the last one."""


def grouped(maps: Tensor, block: Block) -> Tensor:
    """(B, C, H, W) -> (B, h, w, C a b): for each channel the tokens of a block in raster order, as published weights
    want them."""
    wide = shuffled(maps, block)
    return wide.unflatten(1, (block[0] * block[1], -1)).transpose(1, 2).flatten(1, 2).permute(0, 2, 3, 1)


class Network(nn.Module):
    """Fusion of depths, then of blocks.

    Args:
        width: C of the tokens that come.
        out: D of those that leave.
        maps: depths.
        sides: of the blocks.
        residual: add to the projector on pooled tokens, nothing at first, with smaller matrices; else as published.
        projector: of the host, to start from with the residual.
    """

    def __init__(
        self, width: int, out: int, maps: int, sides: Sequence[int], residual: bool, projector: Projector
    ) -> None:
        super().__init__()
        self.residual, hidden = residual, width if residual else 16 * width
        self.depths = Mlp(maps * width, width, between=max(1, width // 2) if residual else 4 * width)
        self.first = nn.ModuleDict({str(side): nn.Linear(side * side * width, hidden) for side in sides})
        self.second = nn.Linear(hidden, out)
        self.mlp = Mlp(width, out, projector) if residual else None
        if residual:
            for added in (self.depths.layers[1], self.second):
                nn.init.zeros_(added.weight)
                nn.init.zeros_(added.bias)

    def forward(self, x: Tensor, grid: Grid, side: int, *levels: Tensor) -> Tensor:
        """(B, T H W, C) and other depths alike -> (B T, D, h, w)."""
        t, height, width = grid
        fused = self.depths(torch.cat([x, *levels], dim=-1))
        plain, fused = (
            rows.unflatten(1, (t, height, width)).flatten(0, 1).permute(0, 3, 1, 2)
            for rows in (x, x + fused if self.residual else fused)
        )
        y = self.second(gelu(self.first[str(side)](grouped(fused, (side, side)))))
        if self.residual:
            y = y + self.mlp(avg_pool2d(padded(plain, (side, side)), side).permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)

    def flops(self, m: int, n: int, side: int) -> int:
        """Of m blocks of n tokens."""
        fusion = self.depths.flops(n) + linear_flops(self.first[str(side)], m) + linear_flops(self.second, m)
        return fusion + (self.mlp.flops(m) if self.residual else 0)


@register
@dataclass(frozen=True)
class LlavaStf(Learned, Resampler):
    """Fuse the states behind eight depths token by token, lay the tokens of each s x s block side by side, project.

    Paper:   Tang et al., 2025, https://arxiv.org/abs/2506.07138
    Code:    https://github.com/visresearch/LLaVA-STF, llava/model/multimodal_projector/builder.py
    Formula: m = x + V2 gelu(V1 u), u the states of all depths side by side; y = P(mean of x in the block)
             + W2 gelu(W1 (tokens of m in the block side by side)), P an MLP as the host's
    Shapes:  x, block_states (B, T H W, C) -> (B, T ceil(H / s) ceil(W / s), D), raster order
    Cost:    9 n C^2 and 2 k (s^2 C^2 + 2 C D + D^2) for k tokens out; published 72 n C^2 and 2 k (16 s^2 C^2 + 16 C D)
             with s = 2.
    Differs: the published module is m = V2 gelu(V1 u), y = W2 gelu(W1 ..) with 4 C and 16 C features in between and is
             trained with the decoder; by default both are smaller and added to pooling before the host's projector,
             from nothing. Other sides than 2 have a first matrix W1 of their own. Where blocks do not fill the grid its
             last row and column are repeated; the code wants an even square.

    Args:
        sides: values of s that are trained together.
        residual: as said under Differs; False = as published.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        MissingSignal: the host gave no `block_states`.
        ValueError: `sides` is empty or one is below 1, tokens are not a whole grid, or `count` is not that of a side.
    """

    name = "llava_stf"
    stages = ("projector",)
    kinds = frozenset({"block_states"})
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    paper = "Tang et al., 2025, https://arxiv.org/abs/2506.07138"
    fidelity = "reference"

    sides: tuple[int, ...] = (2, 3, 4)
    residual: bool = True

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1:
            raise ValueError(f"llava_stf: sides {self.sides} must be 1 or more")

    def signals(self, depth: int) -> frozenset[Signal]:
        return level_signals(LEVELS, depth)

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual, widths.decoder, len(LEVELS) + 1, self.sides, self.residual, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return block_counts(squares(self.sides), grid)

    def training_counts(self, grid: Grid) -> Sequence[int]:
        return self.reachable(grid)  # each has weights of its own

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        side, _ = block_of(squares(self.sides), tokens.n, count)
        return raster(self.run(tokens.x, tokens.grid, side, *level_states(LEVELS, tokens)), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(count, n, block_of(squares(self.sides), n, count)[0])

"""Pixel shuffle: the tokens of each block stand side by side as one wide token, which an MLP projects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.blocks import Block, block_counts, block_of, shuffled
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Mlp, fits, linear_flops
from foveate.compressors.planes import planes, raster
from foveate.compressors.registry import register


class Network(nn.Module):
    """A first matrix for each size of block, a second one for all. At first: the projector on the mean of the block.

    Args:
        width: C of the tokens that come.
        out: D of those that leave, also in between.
        blocks: sizes.
        norm: normalise the wide token, and start at random.
        projector: of the host, to start from.
    """

    def __init__(self, width: int, out: int, blocks: Sequence[Block], norm: bool, projector: Projector) -> None:
        super().__init__()
        wide = {name(block): block[0] * block[1] * width for block in blocks}
        self.norms = nn.ModuleDict({key: nn.LayerNorm(n) for key, n in wide.items()} if norm else {})
        self.first = nn.ModuleDict({key: nn.Linear(n, out) for key, n in wide.items()})
        plain = Mlp(width, out, projector)
        self.second = plain.layers[1]
        if not norm and fits(plain.layers, projector):
            for block in blocks:
                spread(plain.layers[0], self.first[name(block)], block[0] * block[1])

    def forward(self, maps: Tensor, block: Block) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        x = shuffled(maps, block).permute(0, 2, 3, 1)
        x = self.norms[name(block)](x) if self.norms else x
        return self.second(gelu(self.first[name(block)](x))).permute(0, 3, 1, 2)

    def flops(self, block: Block, count: int) -> int:
        """Of that many blocks."""
        return linear_flops(self.first[name(block)], count) + linear_flops(self.second, count)


@register
@dataclass(frozen=True)
class PixelShuffle(Learned, Resampler):
    """Move each block of neighbouring tokens into the channels of one, frame by frame, and project that.

    Paper:   Chen et al. (InternVL 1.5), 2024, https://arxiv.org/abs/2404.16821
    Code:    https://github.com/OpenGVLab/InternVL, internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py
    Formula: u[i, j, (b p + q) C + c] = x[a i + p, b j + q, c] in blocks of a x b; y = W2 gelu(W1 u + b1) + b2
    Shapes:  x (B, T H W, C) -> (B, T ceil(H / a) ceil(W / b), D), raster order
    Cost:    2 k (a b C D + D^2) for k tokens out.
    Differs: the code has blocks of 2 x 2 alone and fails where they do not fill the grid; here the last row and column
             are repeated, and other blocks have a first matrix of their own. The code normalises the wide token; by
             default nothing does here, so that a copy of the host's projector in each place is the mean of the block.

    Args:
        blocks: sizes that are trained together.
        norm: normalise the wide token and start at random, as published.
        version: of the order of tokens: "v2" = raster; "v1" = column by column, the transposed map of early weights.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `version` is unknown, a block has a side below 1, tokens are not a whole grid, or `count` is not
            that of a block.
    """

    name = "pixel_shuffle"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    paper = "Chen et al., 2024, https://arxiv.org/abs/2404.16821"
    fidelity = "paper"

    blocks: tuple[Block, ...] = ((1, 2), (2, 2), (3, 3), (4, 4))
    norm: bool = False
    version: str = "v2"

    def __post_init__(self) -> None:
        if self.version not in ("v1", "v2"):
            raise ValueError(f"pixel_shuffle: version {self.version!r} is neither 'v1' nor 'v2'")
        if not self.blocks or min(map(min, self.blocks)) < 1:
            raise ValueError(f"pixel_shuffle: blocks {self.blocks} must have sides of 1 or more")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual, widths.decoder, self.blocks, self.norm, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return block_counts(self.blocks, grid)

    def training_counts(self, grid: Grid) -> Sequence[int]:
        return self.reachable(grid)  # each has weights of its own

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        made = raster(self.run(planes(self.name, tokens), block_of(self.blocks, tokens.n, count)), tokens)
        if self.version == "v2":
            return made
        t, h, w = made.grid_out
        order = torch.arange(count, device=made.x.device).view(t, h, w).mT.flatten()
        return replace(made, x=made.x[:, order], position=made.position[:, order], grid_out=(t, w, h))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(block_of(self.blocks, n, count), count)


def name(block: Block) -> str:
    """How a network calls a block."""
    return f"{block[0]}x{block[1]}"


@torch.no_grad()
def spread(one: nn.Linear, all_: nn.Linear, tokens: int) -> None:
    """Makes a matrix on several tokens do to them what another does to their mean."""
    all_.weight.copy_(one.weight.repeat(1, tokens) / tokens)
    all_.bias.copy_(one.bias)

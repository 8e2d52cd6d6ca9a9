"""Tubelets: the same place in neighbouring frames, and neighbours in each, become their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.functional import avg_pool3d

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.planes import planes, raster
from foveate.compressors.registry import register

Block = tuple[int, int, int]
"""(frames, rows, columns) of tokens that become one."""


@register
@dataclass(frozen=True)
class Tubelets(Resampler):
    """Mean of the tokens in blocks of a frames by b rows by c columns: pairs of frames and 2 x 2 as in Qwen2.5-VL.

    Paper:   Bai et al. (Qwen2.5-VL), 2025, https://arxiv.org/abs/2502.13923
    Code:    none: https://github.com/QwenLM/Qwen2.5-VL has the trained module
    Formula: slot = mean of the block; the last blocks along an axis may be cut off by its end
    Shapes:  x (B, T H W, D) -> (B, ceil(T / a) ceil(H / b) ceil(W / c), D), raster order
    Cost:    no matrix product: additions only.
    Differs: there a convolution over two frames of pixels and an MLP over 2 x 2 tokens do this, trained with all of the
             model, whose family here is a host of its own; this is the plain mean behind any host's projector, the
             start from which the learned `stc_connector` goes on. An odd last frame is repeated there, which leaves it
             as it is in a mean.

    Args:
        blocks: in order of preference where several give one count.
    Raises:
        ValueError: `blocks` are empty or have a side below 1, tokens are not a whole grid, or `count` is not that of a
            block.
    """

    name = "tubelets"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "after"
    paper = "Bai et al., 2025, https://arxiv.org/abs/2502.13923"
    fidelity = "reconstruction"

    blocks: tuple[Block, ...] = ((2, 2, 2), (2, 1, 1), (1, 2, 2), (4, 2, 2), (4, 1, 1), (8, 2, 2))

    def __post_init__(self) -> None:
        if not self.blocks or min(map(min, self.blocks)) < 1:
            raise ValueError(f"tubelets: blocks {self.blocks} must have sides of 1 or more")

    def by_count(self, grid: Grid) -> dict[int, Block]:
        """The first block that gives each count."""
        found: dict[int, Block] = {}
        for block in self.blocks:
            t, h, w = (-(-n // side) for n, side in zip(grid, block, strict=True))
            found.setdefault(t * h * w, block)
        return found

    def reachable(self, grid: Grid) -> Sequence[int]:
        return sorted(self.by_count(grid))

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        maps = planes(self.name, tokens).unflatten(0, (-1, tokens.grid[0])).transpose(1, 2)
        block = self.by_count(tokens.grid)[count]
        sides = [min(side, n) for side, n in zip(block, tokens.grid, strict=True)]
        return raster(avg_pool3d(maps, sides, ceil_mode=True).transpose(1, 2).flatten(0, 1), tokens)

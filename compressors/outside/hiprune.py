"""HiPrune: anchors from a middle layer, their neighbours, and registers from the deepest one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import marked, ranked, selection
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class HiPrune(Reducer):
    """Keep what a middle block attends to most, the four neighbours of each, and then what the last block attends to.

    Paper:   Liu et al., 2025, https://arxiv.org/abs/2508.00553
    Code:    https://github.com/Danielement321/HiPrune, LLaVA/llava/model/llava_arch.py
    Formula: a[j] = mean_(h, i) attn[h, i, j]; anchors = the round(alpha count / 5) largest a of the object block;
             buffers = up, down, left and right of each; registers = the largest a of the feature block among the rest
    Shapes:  received_attention (B, N) of two blocks -> anchor (B, K) int64
    Cost:    no matrix product beside the two attention maps.
    Differs: in the code left and right neighbours run over the edge of the grid and those above the first row become
             token 0; here neighbours lie on the grid. Where anchors and buffers exceed the count, anchors go first,
             then buffers by the object block's attention. Neighbours that are gone already are not replaced.

    Args:
        alpha: five times the share of the count that anchors get, 0 .. 5; 0 keeps the last block's favourites alone.
        layer: the object block as (number counted from 1, depth of the paper's model): (9, 24) for CLIP-L, (16, 32)
            for Qwen2.5-VL.
    Raises:
        ValueError: `alpha` is outside [0, 5], `layer` is outside the model, or `count` is outside 1..N.
        MissingSignal: the host gave no `received_attention`.
    """

    name = "hiprune"
    stages = ("outside",)
    kinds = frozenset({"received_attention"})
    positions = "renumber"
    paper = "Liu et al., 2025, https://arxiv.org/abs/2508.00553"
    fidelity = "reference"

    alpha: float = 0.1
    layer: tuple[int, int] = (9, 24)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 5:
            raise ValueError(f"{self.name}: alpha {self.alpha} is outside [0, 5]")
        if not 1 <= self.layer[0] <= self.layer[1]:
            raise ValueError(f"{self.name}: layer {self.layer[0]} is outside 1..{self.layer[1]}")

    def signals(self, depth: int) -> frozenset[Signal]:
        middle = Signal("received_attention", scaled(self.layer, depth) - 1, "object")
        return frozenset({middle, Signal("received_attention", FEATURE_LAYER, "deep")})

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        return selection(self.hierarchy(tokens, count))

    def hierarchy(self, tokens: Tokens, count: int) -> Tensor:
        """(B, N) bool, the `count` tokens that anchors, buffers and registers make."""
        middle = tokens.signals["received_attention.object"].float()
        deep = tokens.signals["received_attention.deep"].float()
        anchor = marked(middle, ranked(middle)[:, : round(self.alpha * count / 5)])
        near = anchor | beside(anchor, tokens.position, tokens.grid)
        tier = anchor.long() + near.long()  # 2 anchors, 1 buffers, 0 the rest
        return marked(middle, ranked(torch.where(near, middle, deep), tier)[:, :count])


def beside(mask: Tensor, position: Tensor, grid: Grid) -> Tensor:
    """(B, N) bool: the token stands above, below, left or right of one in `mask`, in the same frame of the grid."""
    b, (t, h, w) = mask.shape[0], grid
    at = position.masked_fill(position < 0, t * h * w)  # the last cell is for tokens without a place
    plane = torch.zeros(b, t * h * w + 1, dtype=torch.bool, device=mask.device).scatter_(1, at, mask)
    here = plane[:, :-1].view(b, t, h, w)
    found = torch.zeros_like(here)
    found[:, :, 1:] |= here[:, :, :-1]
    found[:, :, :-1] |= here[:, :, 1:]
    found[..., 1:] |= here[..., :-1]
    found[..., :-1] |= here[..., 1:]
    return torch.cat([found.flatten(1), torch.zeros_like(plane[:, :1])], dim=1).gather(1, at)

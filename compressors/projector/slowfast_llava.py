"""SlowFast-LLaVA: a few frames in detail, then all frames coarsely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.blocks import Block
from foveate.compressors.planes import planes
from foveate.compressors.registry import register

BLOCKS: dict[int, Block] = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
"""Tokens that the slow path pools -> (rows, columns) of them."""

FAST_SHARE = 800 / 3680
"""Of all tokens, as published: 50 frames of 4 x 4 beside 10 frames of 24 x 12."""


@register
@dataclass(frozen=True)
class SlowFastLLaVA(Resampler):
    """Maxima over small blocks in S frames, spread evenly over the clip; then means over f x f cells in every frame.

    Paper:   Xu et al., 2024, https://arxiv.org/abs/2407.15841
    Code:    https://github.com/apple/ml-slowfast-llava, slowfast_llava/llava/model/llava_arch.py
    Formula: slow frames floor(i T / S), i < S, each pooled by p tokens side by side; fast: all T frames, adaptive mean
             over f x f; slow tokens, then fast ones; S ceil(H W / p) + T f^2 = count
    Shapes:  x (B, T H W, D) -> (B, K, D)
    Cost:    no matrix product: maxima and additions.
    Differs: published S = 10, p = 2, f = 4 belong to 50 frames of 24 x 24; here the count chooses: the first p of
             `pools` that can give it, then the f whose share of the tokens is nearest to the published one. The code
             pairs tokens along the flattened frame; here pairs stay in their row, which is the same where a row is
             even, and a last odd one is pooled by itself. S is at most T, where the code repeats frames. Of its slow
             paths global and space-time means are left out. The decoder's rotation is not stretched, as there by 2.

    Args:
        pools: values of p, 1, 2 or 4, in order of preference.
        fast: values of f; 0 = no fast path.
        mode: of the slow path: "max" or "mean".
        order: "paths" as published, tokens without a place of their own; "time": each where it stands in the clip, for
            models that write a heading before each frame.
    Raises:
        ValueError: `mode` or `order` is unknown, `pools` or `fast` are empty or hold another value, tokens are not a
            whole grid, or `count` is not that of a choice of S, p and f.
    """

    name = "slowfast_llava"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    hook = "after"
    paper = "Xu et al., 2024, https://arxiv.org/abs/2407.15841"
    fidelity = "reference"

    pools: tuple[int, ...] = (2, 4, 1)
    fast: tuple[int, ...] = (1, 2, 4, 6)
    mode: str = "max"
    order: str = "paths"

    def __post_init__(self) -> None:
        if self.mode not in ("max", "mean") or self.order not in ("paths", "time"):
            raise ValueError(f"slowfast_llava: mode {self.mode!r} or order {self.order!r} is unknown")
        if not self.pools or not self.fast or not set(self.pools) <= set(BLOCKS) or min(self.fast) < 0:
            raise ValueError(f"slowfast_llava: pools {self.pools} must be of 1, 2, 4, and fast {self.fast} at least 0")

    def reachable(self, grid: Grid) -> Sequence[int]:
        return sorted(choices(grid, self.pools, self.fast))

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        t, h, w = tokens.grid
        frames, block, side = choices(tokens.grid, self.pools, self.fast)[count]
        maps = planes(self.name, tokens).unflatten(0, (-1, t))  # (B, T, D, H, W)
        slow = torch.arange(frames, device=maps.device) * t // frames
        pool = max_pool2d if self.mode == "max" else avg_pool2d
        parts = [pool(maps[:, slow].flatten(0, 1), block, ceil_mode=True)]
        places = [places_of(slow, parts[0], h, w)]
        if side:
            parts.append(adaptive_avg_pool2d(maps.flatten(0, 1), side))
            places.append(places_of(torch.arange(t, device=maps.device), parts[1], h, w))
        x = torch.cat(
            [part.flatten(2).mT.unflatten(0, (-1, len(part) // len(maps))).flatten(1, 2) for part in parts], 1
        )
        place = torch.cat(places)
        place = torch.full_like(place, -1) if self.order == "paths" else place
        return Resampled(x.to(tokens.x.dtype), place.expand(len(x), -1))


@lru_cache(maxsize=64)
def choices(grid: Grid, pools: tuple[int, ...], fast: tuple[int, ...]) -> dict[int, tuple[int, Block, int]]:
    """Count -> (S, slow block, f) that gives it, see `SlowFastLLaVA`."""
    t, h, w = grid
    found: dict[int, tuple[int, Block, int]] = {}
    for pool in pools:
        a, b = BLOCKS[pool]
        each = -(-h // a) * -(-w // b)
        by_share: dict[int, list[tuple[float, int, int]]] = {}
        for side in fast:
            for frames in range(1, t + 1):
                count = frames * each + t * side**2
                if side <= min(h, w) and count <= t * h * w:
                    by_share.setdefault(count, []).append((abs(t * side**2 / count - FAST_SHARE), side, frames))
        found = {count: (min(best)[2], (a, b), min(best)[1]) for count, best in by_share.items()} | found
    return found


def places_of(frames: Tensor, maps: Tensor, h: int, w: int) -> Tensor:
    """(frames * cells,) the place nearest to the middle of each cell of maps (.., .., rows, columns), in these frames
    of h x w."""
    row, column = (
        (2 * torch.arange(cells, device=maps.device) + 1) * length // (2 * cells)
        for cells, length in zip(maps.shape[2:], (h, w), strict=True)
    )
    return ((frames.view(-1, 1, 1) * h + row.view(-1, 1)) * w + column).flatten()

"""Feather: rank without rotation, keep an even grid beside the best, and prune hard only later."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import ranked, selection
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class Feather(Reducer):
    """An early prune keeps the best tokens and an even grid of the picture, a later one the best alone.

    Paper:   Endo et al., ICCV 2025, https://arxiv.org/abs/2412.13180
    Code:    https://github.com/markendo/FEATHER
    Formula: phi[n] = (1/H) * sum_h softmax over visual n of q_last k[n] / sqrt(e), not rotated; before layer K1 stay
             the floor(a N) largest phi and all (y, x) with y mod s = x mod s = 0, before K2 floor(a^2 N1) of those N1
    Shapes:  unrotated_query (B, H, N) -> anchor (B, K) int64
    Cost:    one query row, 2 B H N d FLOPs, and keys that are not rotated, in two layers
    Differs: `count` is what the second prune leaves, so a follows from it. How many the union holds is known only once
             it is made; here the best are added to the grid until it has the number that a union of independent sets
             would have, so that costs are known before. With `share` given it is the code's union, and `count` a
             ceiling. Where the grid does not fit, the best of its tokens stay. The code takes pictures to be square.

    Args:
        layers: K1 and K2 of the paper, and its depth. Tokens are ranked by the layer before.
        stride: s, of the even grid.
        share: a, 0.3 in the code; None = as it takes for `count`.
    Raises:
        ValueError: `layers` do not ascend within 1 .. depth - 1, `stride` is below 1, `share` is outside (0, 1), or
            `count` is outside 1..N.
        MissingSignal: the host gave no `unrotated_query`.
    """

    name = "feather"
    stages = ("prefill",)
    kinds = frozenset({"unrotated_query"})
    text_guided = True
    adaptive = True
    paper = "Endo et al., ICCV 2025, https://arxiv.org/abs/2412.13180"
    fidelity = "reference"

    layers: tuple[tuple[int, int], int] = ((8, 16), 32)
    stride: int = 3
    share: float | None = None

    def __post_init__(self) -> None:
        (first, second), depth = self.layers
        if not 1 <= first < second < depth:
            raise ValueError(f"feather: layers {first}, {second} do not ascend within 1..{depth - 1}")
        if self.stride < 1:
            raise ValueError(f"feather: stride {self.stride} is below 1")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"feather: share {self.share} is outside (0, 1)")

    def resolved(self, depth: int) -> list[int]:
        """The layers before which tokens go, on a model of this depth."""
        layers, of = self.layers
        return sorted({scaled((layer, of), depth) for layer in layers})

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("unrotated_query", layer - 1) for layer in self.resolved(depth))

    def signals_at(self, site_layer: int, depth: int) -> frozenset[Signal]:
        return super().signals_at(site_layer - 1, depth)

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        layers = self.resolved(depth)
        even = math.ceil(math.sqrt(n) / self.stride) ** 2  # on a square
        if self.share is None:
            share = solved(n, even, count)
            union = round(share * n + even * (1 - share))
        else:
            union = int(self.share * n + 1e-9) + even
        if len(layers) == 1 or n - count == 1:
            return [(layers[0], count)]
        return falling(n, layers, [max(count + 1, min(n - 1, union)), count])

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        phi = tokens.signals["unrotated_query"].float()
        phi = (phi / phi.sum(dim=-1, keepdim=True).clamp(min=1e-30)).mean(dim=1)
        n, even = tokens.n, on_grid(tokens, self.stride)
        if tokens.site:
            most = count if self.share is None else min(count, max(1, int(self.share**2 * n + 1e-9)))
            return Reduction(ranked(phi)[:, :most].sort(dim=-1).values)
        if self.share is None:
            return Reduction(ranked(phi, even.long())[:, :count].sort(dim=-1).values)
        best = torch.zeros_like(even).scatter_(1, ranked(phi)[:, : max(1, int(self.share * n + 1e-9))], True)
        fits = torch.zeros_like(even).scatter_(1, ranked(phi, (best | even).long())[:, :count], True)
        return selection((best | even) & fits)


def on_grid(tokens: Tokens, stride: int) -> Tensor:
    """(B, N) bool: tokens at every stride-th row and column of their frame."""
    _, h, w = tokens.grid
    y, x = tokens.position % (h * w) // w, tokens.position % w
    return (y % stride == 0) & (x % stride == 0) & (tokens.position >= 0)


def solved(n: int, even: int, count: int) -> float:
    """The share a with a^2 (a n + (1 - a) even) = count: what two prunes keep of n where the grid has `even` tokens."""
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        if share**2 * (share * n + (1 - share) * even) < count:
            low = share
        else:
            high = share
    return high

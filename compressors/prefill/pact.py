"""PACT: drop what neither stands out nor is attended to, then merge what is left into centres of dense places."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import rank, ranked, rows
from foveate.compressors.clusters import means
from foveate.compressors.density import centres, densities, reach
from foveate.compressors.matching import cosine, needs_width
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class Pact(Reducer):
    """Prune by norm times attention of the mean query; merge the others, and the near ones of the pruned, by density.

    Paper:   Dhouib et al., CVPR 2025, https://arxiv.org/abs/2504.08966
    Code:    https://github.com/orailix/PACT
    Formula: s[n] = ||x[n]|| mean_h attn[h, mean query, n], the floor(p N) largest survive; by falling density
             sum_j exp(-(d[i, j] / 2)^2) a survivor is a centre if it lies farther than dc from every centre; each token
             at most alpha dc from its nearest centre joins its mean, and attention adds log(members)
    Shapes:  mean_query (B, H, N), wide_keys (B, N, d), x (B, N, D) -> into, weight (B, N, 1)
    Cost:    2 B N R d FLOPs for R survivors, beside queries and keys of one layer; no attention is read
    Differs: the code's p and dc are fixed and its count is what comes out; here dc is searched, by halving, until there
             are `count` centres or a few more, of which the densest stay, and p follows from `count`. With `cutoff`
             given it is the code's, and `count` a ceiling. Equal densities go to the lower index.

    Args:
        layer: tokens are gone before it, as (number, depth of the paper's models): (4, 28).
        share: p, 0.55 in the code for LLaVA-OneVision and 0.8 for Qwen2-VL; None = 1.8 times the ratio, at most all.
        cutoff: dc, 0.21 and 0.1 there; None = as it takes for `count`.
        alpha: how much farther than dc a token that is no centre may lie.
    Raises:
        ValueError: `layer` is outside 1 .. depth - 1, `share` is outside (0, 1], `cutoff` or `alpha` is below 0,
            `count` is outside 1..N, or `key_dim` is missing for `flops`.
        MissingSignal: the host gave no `mean_query` or no `wide_keys`.
    """

    name = "pact"
    stages = ("prefill",)
    kinds = frozenset({"mean_query", "wide_keys"})
    adaptive = True
    proportional = True
    paper = "Dhouib et al., CVPR 2025, https://arxiv.org/abs/2504.08966"
    fidelity = "reference"

    layer: tuple[int, int] = (4, 28)
    share: float | None = None
    cutoff: float | None = None
    alpha: float = 1.5

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1]:
            raise ValueError(f"pact: layer {self.layer[0]} is outside 1..{self.layer[1] - 1}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"pact: share {self.share} is outside (0, 1]")
        if self.alpha < 0 or (self.cutoff is not None and self.cutoff < 0):
            raise ValueError(f"pact: cutoff {self.cutoff} or alpha {self.alpha} is below 0")

    def signals(self, depth: int) -> frozenset[Signal]:
        layer = scaled(self.layer, depth)
        return frozenset({Signal("mean_query", layer), Signal("wide_keys", layer)})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(scaled(self.layer, depth), count)]

    def survivors(self, n: int, count: int) -> int:
        """How many of n tokens the first step leaves."""
        share = 1.8 * count / n if self.share is None else self.share
        left = min(n, max(1, int(share * n + 1e-9)))
        return left if self.cutoff is not None else max(count, left)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        score = tokens.signals["mean_query"].float().mean(dim=1) * tokens.x.float().norm(dim=-1)
        left = ranked(score)[:, : self.survivors(tokens.n, count)].sort(dim=-1).values  # (B, R)
        keys = tokens.signals["wide_keys"]
        apart = 1 - cosine(keys, rows(keys, left))  # (B, N, R)
        among = rows(apart, left)  # (B, R, R)
        density = densities(among)
        dc = reach(among, density, count) if self.cutoff is None else torch.full_like(density[:, 0], self.cutoff)
        is_centre = centres(among, density, dc)
        is_centre &= rank(density.masked_fill(~is_centre, -torch.inf)) < count
        distance, nearest = apart.masked_fill(~is_centre.unsqueeze(1), torch.inf).min(dim=-1)
        joins = distance <= self.alpha * dc.clamp(min=0).unsqueeze(-1)
        stands = torch.zeros_like(joins).scatter(1, left, is_centre)
        index = torch.arange(tokens.n, device=left.device).expand_as(score)
        group = torch.where(joins, left.gather(1, nearest), -1)
        return means(stands, torch.where(stands, index, group), torch.ones_like(score))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        needs_width(self.name, key_dim)
        return 2 * n * self.survivors(n, count) * key_dim * heads

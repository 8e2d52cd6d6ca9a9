"""METEOR, first stage: inside the tower drop first what resembles the mean, then what CLS does not attend to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens, scaled
from foveate.compressors.matching import cosine_to
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class Meteor(Selector):
    """Prune at the end of each third of the tower: early by redundancy with the mean token, later by CLS attention.

    Paper:   Liu et al., ICCV 2025, https://arxiv.org/abs/2507.20842
    Code:    announced at https://github.com/YuchenLiu98/METEOR, not released.
    Formula: first site s[n] = -cos(x[n], mean(x)), later ones s[n] = (1/H) sum_h attn[h, CLS, n]; of S sites the
             b-th leaves round(N (count / N)^(b / S))
    Shapes:  x (B, N, D), cls_attention (B, H, N) -> s (B, N) float32
    Cost:    no matrix product beside the CLS row of each site's block.
    Differs: the paper splits a budget among several encoders by the rank of their features; one encoder has it all.
             Which thirds are shallow and the counts between are not told: here the first third is, and counts fall
             geometrically. At least one token goes at the first site.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N.
        MissingSignal: the host gave no `cls_attention`.
    """

    name = "meteor"
    stages = ("encoder",)
    kinds = frozenset({"cls_attention"})
    positions = "renumber"
    paper = "Liu et al., ICCV 2025, https://arxiv.org/abs/2507.20842"
    fidelity = "reconstruction"

    def blocks(self, depth: int) -> list[int]:
        """Thirds of CLIP-L, of whose 24 blocks 23 run; those of a shallow tower that fall together are one."""
        return sorted({scaled((8, 23), depth) - 1, scaled((16, 23), depth) - 1, depth - 1})

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("cls_attention", block) for block in self.blocks(depth))

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        blocks = self.blocks(depth)
        left = [round(n * (count / n) ** (number / len(blocks))) for number in range(1, len(blocks))] + [count]
        return falling(n, blocks, [max(count, min(n - 1, after)) for after in left])  # site 0 is always the shallow one

    def score(self, tokens: Tokens) -> Tensor:
        if tokens.site == 0:
            return -cosine_to(tokens.x, tokens.x.float().mean(dim=1, keepdim=True))
        return tokens.signals["cls_attention"].float().mean(dim=1)

"""VisPruner: keep the tokens that CLS attends to, then thin out near-duplicates among the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import ranked, rows
from foveate.compressors.matching import cosine
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class VisPruner(Reducer):
    """Keep an important share by CLS attention; from the rest, round by round, remove tokens that resemble another.

    Paper:   Zhang et al., ICCV 2025, https://arxiv.org/abs/2412.01818
    Code:    https://github.com/Theia-4869/VisPruner, llava/model/llava_arch.py
    Formula: a[n] = (1/H) sum_h attn[h, CLS, n]; the floor(share * count) largest stay. The others, by falling a, form a
             list; a round splits it into places 0, 2, 4 .. (A) and 1, 3, 5 .. (B), m[i] = max_(j in B) cos(x[i], x[j]),
             removes the `step` largest m of A and goes on with [A by falling m, B]
    Shapes:  cls_attention (B, H, N), x (B, N, D) -> anchor (B, K) int64
    Cost:    2 B R^2 D FLOPs for the R tokens of the list, and (N - K) / step rounds that look them up
    Differs: a list of odd length has its last token in A (the code mixes up indices there). At least one token is
             important. The code removes 8 of 576 tokens in a round; here that share of N, at least one.

    Args:
        share: part of the count that CLS attention chooses: 0.5 or, for few tokens, 0.75 in the paper's examples. 1 is
            the pure attention ranking (FasterVLM).
        step: tokens removed in a round; None = round(N / 72), at least 1.
    Raises:
        ValueError: `share` is outside [0, 1], `step` is below 1, or `count` is outside 1..N.
        MissingSignal: the host gave no `cls_attention`.
    """

    name = "vispruner"
    stages = ("outside",)
    kinds = frozenset({"cls_attention"})
    positions = "renumber"
    paper = "Zhang et al., ICCV 2025, https://arxiv.org/abs/2412.01818"
    fidelity = "reference"

    share: float = 0.5
    step: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"vispruner: share {self.share} is outside [0, 1]")
        if self.step is not None and self.step < 1:
            raise ValueError(f"vispruner: step {self.step} is below 1")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("cls_attention", FEATURE_LAYER)})

    def split(self, count: int) -> tuple[int, int]:
        """Important and diverse tokens of a count."""
        important = max(1, int(count * self.share))
        return important, count - important

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        important, diverse = self.split(count)
        order = ranked(tokens.signals["cls_attention"].float().mean(dim=1))
        kept, rest = order[:, :important], order[:, important:]
        if diverse < rest.shape[1]:
            step = self.step or max(1, round(tokens.n / 72))
            rest = rest.gather(1, thinned(rows(tokens.x, rest), diverse, step))
        return Reduction(torch.cat([kept, rest], dim=1).sort(dim=-1).values)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        important, diverse = self.split(count)
        listed = n - important
        return 2 * listed * listed * dim if 0 < diverse < listed else 0


def thinned(x: Tensor, count: int, step: int) -> Tensor:
    """Places in the list x (B, R, D) of the `count` tokens that the rounds leave: (B, count) int64."""
    b, length, _ = x.shape
    left = torch.arange(length, device=x.device).expand(b, -1)
    if count == 0:
        return left[:, :0]
    likeness = cosine(x, x).flatten(1)  # (B, R * R)
    while left.shape[1] > count:
        a, other = left[:, ::2], left[:, 1::2]
        removed = min(step, left.shape[1] - count, a.shape[1])
        at = (a * length).unsqueeze(-1) + other.unsqueeze(1)  # (B, A, R - A)
        order = ranked(likeness.gather(1, at.flatten(1)).view_as(at).amax(dim=-1))
        left = torch.cat([a.gather(1, order[:, removed:]), other], dim=1)
    return left

"""MustDrop, second stage: drop what the words attend to little, all of them together and each by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import ranked, selection
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class MustDrop(Reducer):
    """Behind four early layers rank visual tokens by the attention of the words; what CLS looked at most is protected.

    Paper:   Liu et al., 2024, https://arxiv.org/abs/2411.10803
    Code:    https://github.com/liuting20/MustDrop
    Formula: A: attention of words on visual tokens, mean over heads; s[n] = sum_t A[t, n], m[n] = max_t A[t, n];
             protected: the `key_share` of the encoder's tokens that CLS attends to most; the largest s stay, protected
             ones first, N (count / N)^(i / S) of them at site i of S
    Shapes:  text_attention (B, 2, N), cls_rank (B, N) -> anchor (B, K)
    Cost:    all words' query rows of four layers, and the encoder's CLS row.
    Differs: the code drops n where s[n] < g sum(s) and m[n] < u, which is content's own budget: `global_share` g and
             `local` u do so, with `count` as ceiling; without them rank decides. Words before the picture are causal
             and pay nothing to it. An encoder without CLS gives the attention received.

    Args:
        layers: layers behind which tokens go, and the depth that they are counted on.
        key_share: share of the encoder's tokens that is protected.
        global_share: g, or None.
        local: u, or None = no limit.
    Raises:
        ValueError: `layers` are not ascending within the depth, or `count` is outside 1..N.
        MissingSignal: the host gave no `text_attention` or no `cls_rank`.
    """

    name = "mustdrop"
    stages = ("prefill",)
    kinds = frozenset({"text_attention", "cls_rank"})
    text_guided = True
    adaptive = True
    positions = "renumber"
    paper = "Liu et al., 2024, https://arxiv.org/abs/2411.10803"
    fidelity = "paper"

    layers: tuple[tuple[int, ...], int] = ((2, 6, 10, 14), 32)
    key_share: float = 0.08
    global_share: float | None = None
    local: float | None = None

    def __post_init__(self) -> None:
        layers, depth = self.layers
        if not layers or layers != tuple(sorted(set(layers))) or layers[0] < 0 or layers[-1] > depth - 2:
            raise ValueError(f"mustdrop: layers {layers} are not ascending within 0..{depth - 2}")

    def _before(self, depth: int) -> list[int]:
        """The layers before which tokens go on a model of this depth; those that fall together are one."""
        layers, of = self.layers
        return sorted({scaled((layer + 1, of), depth) for layer in layers})

    def signals(self, depth: int) -> frozenset[Signal]:
        words = {Signal("text_attention", layer - 1) for layer in self._before(depth)}
        return frozenset({Signal("cls_rank", FEATURE_LAYER), *words})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        layers = self._before(depth)
        left = [max(count, round(n * (count / n) ** (i / len(layers)))) for i in range(1, len(layers))]
        return falling(n, layers, [*left, count])

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        total, largest = tokens.signals["text_attention"].float().unbind(1)
        protected = tokens.signals["cls_rank"].float() < self.key_share
        stays = torch.ones_like(protected)
        if self.global_share is not None:
            low = total < self.global_share * total.sum(-1, keepdim=True)
            stays = protected | ~(low & (largest < (torch.inf if self.local is None else self.local)))
        order = ranked(total, stays.int() + protected.int())
        number = stays.sum(-1, keepdim=True).clamp(1, count)
        return selection(order.argsort(dim=-1) < number)

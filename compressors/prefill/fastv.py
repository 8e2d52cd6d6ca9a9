"""FastV: drop the visual tokens that the last prompt token attends to least."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens, scaled
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class FastV(Selector):
    """Rank visual tokens by the attention they receive in one early decoder layer.

    Paper:   Chen et al., ECCV 2024, https://arxiv.org/abs/2403.06764
    Code:    https://github.com/pkunlp-icler/FastV, fastv_forward.py
    Formula: s[n] = (1/H) * sum_h attn[h, q, n], with q the last prompt position
    Shapes:  last_query (B, H, N) -> s (B, N) float32
    Cost:    one query row of one layer beside the fused kernel: 2 * B * H * N * d FLOPs
    Differs: the paper averages over all tokens, the authors' code takes the last one; this follows the code.

    Args:
        layer: K of the paper as (layer, depth) there: (2, 32). Attention of layer K-1 is read; tokens are gone before
            layer K.
    Raises:
        ValueError: `layer` is below 1, or `count` is outside 1..N.
        MissingSignal: the host gave no `last_query`.
    """

    name = "fastv"
    stages = ("prefill",)
    kinds = frozenset({"last_query"})
    text_guided = True
    paper = "Chen et al., ECCV 2024, https://arxiv.org/abs/2403.06764"
    fidelity = "reference"

    layer: tuple[int, int] = (2, 32)

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1]:
            raise ValueError(f"fastv: layer {self.layer[0]} is outside 1..{self.layer[1] - 1}")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("last_query", scaled(self.layer, depth) - 1)})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(scaled(self.layer, depth), count)]

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.signals["last_query"].float().mean(dim=1)

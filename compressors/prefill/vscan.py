"""VScan, second stage: one prune in the middle of the decoder, by the last prompt token's attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens, scaled
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class VScanPrefill(Selector):
    """Rank what is left by the attention of the layer in the middle of the decoder, before it runs.

    Paper:   Zhang et al., TMLR 2026, https://arxiv.org/abs/2505.22654
    Code:    https://github.com/Tencent/SelfEvolvingAgent, VScan
    Formula: s[n] = (1/H) * sum_h attn[h, q, n] with layer K's own projections, q the last prompt position
    Shapes:  last_query or unrotated_query (B, H, N) -> s (B, N) float32
    Cost:    one query row, 2 B H N d FLOPs, and that layer's keys
    Differs: nothing known. The code rotates queries and keys on LLaVA and numbers ids anew there; on Qwen2.5-VL it does
             not rotate (`rotated` False) and ids are kept, as they are here on every model with ids by three axes.

    Args:
        layer: K, tokens are gone before it, as (number, depth of the paper's model): (16, 32), and (14, 28) on Qwen.
        rotated: queries and keys carry their rotation.
    Raises:
        ValueError: `layer` is outside 1 .. depth - 1, or `count` is outside 1..N.
        MissingSignal: the host gave no `last_query` (`unrotated_query` where they are not rotated).
    """

    name = "vscan"
    stages = ("prefill",)
    kinds = frozenset({"last_query", "unrotated_query"})
    text_guided = True
    positions = "renumber"
    paper = "Zhang et al., TMLR 2026, https://arxiv.org/abs/2505.22654"
    fidelity = "reference"

    layer: tuple[int, int] = (16, 32)
    rotated: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1]:
            raise ValueError(f"vscan: layer {self.layer[0]} is outside 1..{self.layer[1] - 1}")

    @property
    def kind(self) -> str:
        """The signal that it reads."""
        return "last_query" if self.rotated else "unrotated_query"

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal(self.kind, scaled(self.layer, depth))})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(scaled(self.layer, depth), count)]

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.signals[self.kind].float().mean(dim=1)

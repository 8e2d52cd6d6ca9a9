"""PyramidDrop: drop visual tokens in stages, the fewer the deeper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens, scaled
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class PyramidDrop(Selector):
    """At each boundary rank what is left by the last prompt token's attention, and keep the same share again.

    Paper:   Xing et al., CVPR 2025, https://arxiv.org/abs/2410.17247
    Code:    https://github.com/Cooperx521/PyramidDrop, modeling_llama_pdrop.py
    Formula: s[n] = (1/H) * sum_h attn[h, q, n] with the boundary layer's own projections, q the last prompt position;
             stage i of S keeps floor(N * (count / N)^(i / S))
    Shapes:  last_query (B, H, N) -> s (B, N) float32
    Cost:    one query row at each boundary: 2 * B * H * N * d FLOPs, and that layer's query and key projections
    Differs: nothing known in the ranking; ids are numbered anew after each stage, as in the code (under M-RoPE they are
             kept). The code lists its shares (1/2, 1/4, 1/8); here the last stage leaves `count` and the others lie
             geometrically between, which for 1/8 are the same counts.

    Args:
        boundaries: layers before which tokens go, and the depth that they are counted on: ((8, 16, 24), 32).
    Raises:
        ValueError: `boundaries` are not ascending within 1 .. depth - 1, or `count` is outside 1..N.
        MissingSignal: the host gave no `last_query`.
    """

    name = "pyramiddrop"
    stages = ("prefill",)
    kinds = frozenset({"last_query"})
    text_guided = True
    positions = "renumber"
    paper = "Xing et al., CVPR 2025, https://arxiv.org/abs/2410.17247"
    fidelity = "reference"

    boundaries: tuple[tuple[int, ...], int] = ((8, 16, 24), 32)

    def __post_init__(self) -> None:
        layers, depth = self.boundaries
        if not layers or layers != tuple(sorted(set(layers))) or layers[0] < 1 or layers[-1] >= depth:
            raise ValueError(f"pyramiddrop: boundaries {layers} are not ascending within 1..{depth - 1}")

    def resolved(self, depth: int) -> list[int]:
        """The boundaries on a model of this depth; those that fall together are one."""
        layers, of = self.boundaries
        return sorted({scaled((layer, of), depth) for layer in layers})

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("last_query", layer) for layer in self.resolved(depth))

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        layers = self.resolved(depth)
        counts = stage_counts(n, (count / n) ** (1 / len(layers)), len(layers))
        counts = [max(count, left) for left in counts[:-1]] + [count]
        entering = [n, *counts]
        return [(layer, left) for layer, left, came in zip(layers, counts, entering, strict=False) if left < came]

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.signals["last_query"].float().mean(dim=1)


def stage_counts(n: int, share: float, stages: int) -> list[int]:
    """Tokens after each stage when each keeps the same share of those before: parts of the original n, rounded down."""
    return [int(n * share**stage + 1e-9) for stage in range(1, stages + 1)]

"""PyramidDrop: drop visual tokens in stages, the fewer the deeper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens, scaled
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling, geometric
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
    Cost:    one query row at each boundary, 2 B H N d FLOPs, and that layer's keys
    Differs: nothing known in the ranking. Ids are numbered anew after each stage, as in the code; under M-RoPE, where
             numbers in a line would mean other places in the picture, they are kept. The code lists its shares (1/2,
             1/4, 1/8); here the last stage leaves `count` and the others lie geometrically between, which for 1/8 are
             the same counts. The code projects values too, which nobody reads; the prompt is cut to no length.

    Args:
        boundaries: layers before which tokens go, and the depth that they are counted on: ((8, 16, 24), 32).
        share: what each stage but the last keeps of the tokens before it, 0.5 in the paper; None = as it takes to
            reach `count` evenly.
    Raises:
        ValueError: `boundaries` are not ascending within 1 .. depth - 1, `share` is outside (0, 1], or `count` is
            outside 1..N.
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
    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"pyramiddrop: share {self.share} is outside (0, 1]")
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
        return falling(n, layers, geometric(n, count, len(layers), self.share))

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.signals["last_query"].float().mean(dim=1)

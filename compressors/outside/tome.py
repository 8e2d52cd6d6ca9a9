"""ToMe after the encoder: merge the most alike tokens in rounds, for towers that cannot be opened."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.matching import merge_down, merge_flops
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class ToMeOutside(Reducer):
    """Repeat ToMe's matching and merging on the encoder's output, at most halving each round, until `count` are left.

    Paper:   Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461
    Code:    https://github.com/facebookresearch/ToMe, tome/merge.py
    Formula: c[i] = max_j cos(k[i], k[j]) over even i and odd j; the r largest c merge: x = sum(s x) / sum(s),
             s = sum(s), and k likewise for the next round
    Shapes:  keys (B, N, d), size (B, N) -> into, weight (B, N, 1)
    Cost:    2 B (N/2)^2 d FLOPs in the first round, a quarter of it in each further one
    Differs: the paper merges inside every block; here all rounds use the keys of the block that feeds the projector,
             averaged like the tokens, and no attention follows that could add log sizes.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N.
        MissingSignal: the host gave no `keys`.
    """

    name = "tome"
    stages = ("outside",)
    kinds = frozenset({"keys"})
    positions = "renumber"
    paper = "Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461"
    fidelity = "reconstruction"

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("keys", FEATURE_LAYER)})

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        return merge_down(tokens.signals["keys"], tokens.size, count)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return merge_flops(n, count, key_dim)

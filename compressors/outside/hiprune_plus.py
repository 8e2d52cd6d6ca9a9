"""HiPrune++: HiPrune with some places kept for what the question speaks of."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.base import Reduction, Tokens
from foveate.compressors.choosing import marked, ranked, selection
from foveate.compressors.outside.hiprune import HiPrune
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class HiPrunePlus(HiPrune):
    """HiPrune for most of the count; the rest goes to the remaining tokens most similar to the question.

    Paper:   Liu et al., 2025, https://arxiv.org/abs/2508.00553
    Code:    none of this variant; https://github.com/Danielement321/HiPrune holds the one without text.
    Formula: m = round(beta count); HiPrune keeps count - m tokens; the m largest g among the others join, with g[n] the
             similarity of token and question
    Shapes:  received_attention (B, N) of two blocks, text_similarity (B, N) -> anchor (B, K) int64
    Cost:    no matrix product beside the signals'.
    Differs: the paper adds its m tokens to the count; here they are part of it. Its prose says beta times the count,
             its pseudo-code a fifth of that: this follows the prose.

    Args:
        alpha: as in HiPrune.
        layer: as in HiPrune.
        beta: share of the count that the question chooses, in [0, 1].
    Raises:
        ValueError: a hyperparameter is outside its range, or `count` is outside 1..N.
        MissingSignal: the host gave no `received_attention` or no `text_similarity`.
    """

    name = "hiprune_plus"
    kinds = frozenset({"received_attention", "text_similarity"})
    text_guided = True
    fidelity = "paper"

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"hiprune_plus: beta {self.beta} is outside [0, 1]")

    def signals(self, depth: int) -> frozenset[Signal]:
        return super().signals(depth) | {Signal("text_similarity")}

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        similar = tokens.signals["text_similarity"].float()
        before = self.hierarchy(tokens, count - round(self.beta * count))
        return selection(marked(similar, ranked(similar, before.long())[:, :count]))

"""DyCoke, second stage: each token of the answer reads the visual entries that it looks at, and no others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from foveate.compressors.base import KVCache, KVReducer, KVReduction, scaled
from foveate.compressors.choosing import best_entries
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class DyCoke(KVReducer):
    """From one layer on, a token reads all text and the visual entries it attends to most in the layer before.

    Paper:   Tao et al., CVPR 2025, https://arxiv.org/abs/2411.15024
    Code:    https://github.com/KD-TAO/DyCoke, llava/model/language_model/modeling_qwen2.py
    Formula: a[j] = mean over heads of the token's attention on visual entry j in layer L - 1; if cos(a, a of the token
             before) < gate, layers L and later read the `count` entries with the largest a, else those read before
    Shapes:  answer_attention (B, S) -> keep (B, K, text + count) int64
    Cost:    one attention row of one layer for each token of the answer. The whole cache stays in memory: no byte of
             it is freed, what falls is what later layers read of it. No matrix product beside the signal.
    Differs: where attention is stable the code reads everything; here the choice stands, as the paper means it. The
             code takes floor((1 - P) n) entries, none at P = 1, and carries attention over to the next sample; here
             it is `count`, at least one, and each answer starts anew. In a layer that prefill cut, the count is the
             ratio of what is there. The prompt, a later question too, reads everything.

    Args:
        layer: L as (layer, depth there).
        gate: cosine from which attention counts as stable.
    Raises:
        ValueError: `layer` is below 1, `gate` is outside [-1, 1], or `count` is outside 1 .. visual entries.
        MissingSignal: the host gave no `answer_attention`.
    """

    name = "dycoke"
    stages = ("decode",)
    kinds = frozenset({"answer_attention"})
    reselects = True
    text_guided = True
    paper = "Tao et al., CVPR 2025, https://arxiv.org/abs/2411.15024"
    fidelity = "paper"

    layer: tuple[int, int] = (3, 28)
    gate: float = 0.9

    def __post_init__(self) -> None:
        if self.layer[0] < 1:
            raise ValueError(f"dycoke: layer {self.layer[0]} is below 1")
        if not -1 <= self.gate <= 1:
            raise ValueError(f"dycoke: gate {self.gate} is outside [-1, 1]")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("answer_attention", scaled(self.layer, depth) - 1)})

    def budgets(self, n: int, count: int, layer: int, depth: int, heads: int, last: int) -> tuple[int, ...]:
        return (n if layer < scaled(self.layer, depth) else count,) * heads

    def stands(self, now: Tensor, before: Tensor) -> Tensor:
        return cosine_similarity(now.float(), before.float(), dim=-1) >= self.gate

    def plan(self, cache: KVCache, count: int) -> KVReduction:
        return best_entries(cache.signals["answer_attention"].float(), cache, count)

"""LOOK-M: evict visual KV entries that little attention went to, and merge each into its most similar survivor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import KVCache, KVReducer, KVReduction
from foveate.compressors.matching import cosine
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class LookM(KVReducer):
    """Keep all text, the most recent entries and, per head, the visual entries that received most attention.

    Paper:   Wan et al., EMNLP Findings 2024, https://arxiv.org/abs/2406.18139
    Code:    https://github.com/SUSTechBruce/LOOK-M, kv_token_merge/modify_llama.py
    Formula: s[j] = sum over queries of attn[q, j]; an evicted i joins c = argmax cos(k[i], k[c]) over all that stay,
             with m members: pivot c = (c + sum (k[i] + c) / 2) / (1 + m), average c = (c + sum k[i]) / (1 + m),
             weighted c = (c + sum cos k[i]) / (1 + m) over those with cos above the head's mean; values alike
    Shapes:  accumulated_attention (B, K, S), keys (B, K, S, e) -> keep (B, K, M), into, weight (B, K, S)
    Cost:    2 B K (S - M) M e FLOPs, and exact column sums of the prefill's attention
    Differs: the code's budget is a share of the whole prompt, overrun when the text is longer; here `count` is the
             number of visual entries kept, exactly. Query heads of one KV head are summed (the code knows no groups).
             Where the code filters members by similarity it pairs keys with wrong rows; here both go together.

    Args:
        merge: "pivot", "average", "weighted" or "none" (eviction alone).
        recent: share of the prompt's last entries that always stay, as far as `count` allows.
    Raises:
        ValueError: `merge` is unknown, `recent` is outside [0, 1], or `count` is outside 1 .. visual entries.
        MissingSignal: the host gave no `accumulated_attention`.
    """

    name = "look_m"
    stages = ("decode",)
    kinds = frozenset({"accumulated_attention"})
    text_guided = True
    paper = "Wan et al., EMNLP Findings 2024, https://arxiv.org/abs/2406.18139"
    fidelity = "paper"

    merge: str = "pivot"
    recent: float = 0.1

    def __post_init__(self) -> None:
        if self.merge not in ("pivot", "average", "weighted", "none"):
            raise ValueError(f"look_m: merge {self.merge!r} is not one of pivot, average, weighted, none")
        if not 0 <= self.recent <= 1:
            raise ValueError(f"look_m: recent {self.recent} is outside [0, 1]")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("accumulated_attention", layer) for layer in range(depth))

    def plan(self, cache: KVCache, count: int) -> KVReduction:
        s, visual = cache.visual.shape[0], int(cache.visual.sum())
        stay = s - visual + count
        score = cache.signals["accumulated_attention"].float()
        late = torch.arange(s, device=score.device) >= s - int(self.recent * s)
        score = score + late * (1 + score.amax(dim=-1, keepdim=True))  # above all others, in their own order
        order = score.masked_fill(~cache.visual, torch.inf).argsort(dim=-1, descending=True, stable=True)  # (B, K, S)
        keep, gone = order[..., :stay].sort(dim=-1).values, order[..., stay:]
        if self.merge == "none" or stay == s:
            return KVReduction(keep)
        likeness, nearest = cosine(_rows(cache.keys, gone), _rows(cache.keys, keep)).max(dim=-1)  # (B, K, S - M)
        into = torch.full_like(order, -1)
        into.scatter_(-1, keep, torch.arange(stay, device=keep.device).expand_as(keep))
        joins, member, kept = self._weights(likeness, nearest, stay)
        into.scatter_(-1, gone, nearest.masked_fill(~joins, -1))
        weight = torch.zeros_like(score).scatter(-1, gone, member).scatter(-1, keep, kept)
        return KVReduction(keep, into, weight)

    def _weights(self, likeness: Tensor, nearest: Tensor, stay: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the evicted join (B, K, S - M), what each counts, and what each survivor counts (B, K, M)."""
        joins = torch.ones_like(nearest, dtype=torch.bool)
        if self.merge == "weighted":
            joins = likeness > likeness.mean(dim=-1, keepdim=True)
        members = torch.zeros(*nearest.shape[:-1], stay, device=nearest.device).scatter_add_(-1, nearest, joins.float())
        share = 1 / (1 + members)
        of_its_slot = share.gather(-1, nearest)
        if self.merge == "pivot":
            return joins, of_its_slot / 2, share * (1 + members / 2)
        return joins, of_its_slot * likeness if self.merge == "weighted" else of_its_slot, share

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 0 if self.merge == "none" else 2 * heads * (n - count) * (text + count) * dim


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """The entries of x (B, K, S, e) at index (B, K, M)."""
    return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))

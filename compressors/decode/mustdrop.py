"""MustDrop, last stage: the cache of the layers where tokens were dropped holds only those that lasted to the end."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.base import KVCache, KVReducer, KVReduction, scaled
from foveate.compressors.choosing import selection
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class MustDrop(KVReducer):
    """From the first cut on, evict in each layer what the last layer does not have.

    Paper:   Liu et al., 2024, https://arxiv.org/abs/2411.10803
    Code:    https://github.com/liuting20/MustDrop
    Formula: layers 0 and 1 of 32 are left alone; the others keep the visual entries that the last layer has
    Shapes:  survivors (B, S) -> keep (B, K, M) int64
    Cost:    no matrix product.
    Differs: which layers is written for a depth of 32; here they are scaled. `count` is a ceiling in every layer but
             the first ones, those behind the last cut too: below the number of survivors it keeps evenly spaced ones of
             them, so a plan that wants them all asks for a ratio of nearly 1. Ids of generated tokens go on from each
             layer's own numbering (the code counts anew from the shrunk length, for queries whose keys were rotated
             under other numbers).

    Args:
        first: first layer that is rewritten, as (layer, depth there).
    Raises:
        ValueError: `count` is outside 1 .. visual entries.
        MissingSignal: the host gave no `survivors`.
    """

    name = "mustdrop"
    stages = ("decode",)
    kinds = frozenset({"survivors"})
    adaptive = True
    paper = "Liu et al., 2024, https://arxiv.org/abs/2411.10803"
    fidelity = "paper"

    first: tuple[int, int] = (2, 32)

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("survivors", layer) for layer in range(depth))

    def budgets(self, n: int, count: int, layer: int, depth: int, heads: int, last: int) -> tuple[int, ...]:
        return (n if layer < scaled(self.first, depth) else min(count, last),) * heads

    def plan(self, cache: KVCache, count: int) -> KVReduction:
        alive = (cache.signals["survivors"] > 0.5) & cache.visual  # (B, S)
        number = alive.sum(-1, keepdim=True)
        wanted, rank = number.clamp(max=count), alive.cumsum(-1)
        spaced = rank * wanted // number.clamp(min=1) > (rank - 1) * wanted // number.clamp(min=1)
        kept = selection((alive & spaced) | ~cache.visual)
        heads = cache.keys.shape[1]
        used = None if kept.count is None else kept.count.unsqueeze(1).expand(-1, heads)
        keep = kept.anchor.unsqueeze(1).expand(-1, heads, -1)
        if used is None and keep.shape[-1] < int((~cache.visual).sum()) + count:
            used = keep.new_full(keep.shape[:2], keep.shape[-1])
        return KVReduction(keep, count=used)

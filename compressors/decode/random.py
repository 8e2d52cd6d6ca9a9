"""Random: keep visual KV entries by lot, the control of every cache method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.compressors.base import KVCache, KVReducer, KVReduction
from foveate.compressors.chance import uniform
from foveate.compressors.choosing import best_entries
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class RandomCache(KVReducer):
    """Draw `count` visual entries from the input's seed, the same ones in every head and layer; evict the others.

    Paper:   none; the random control of the pruning literature.
    Code:    none.
    Formula: s[j] = hash(seed, j) / 2^24; text has s = inf; the largest stay
    Shapes:  seed (B,), visual (S,) -> keep (B, K, text + count) int64
    Cost:    no matrix product.
    Differs: nothing known. Papers draw anew in each run; here the lot follows from the input: a run can be repeated.

    Args: none.
    Raises:
        ValueError: `count` is outside 1 .. visual entries.
    """

    name = "random"
    stages = ("decode",)
    paper = "none (control)"
    fidelity = "reference"

    def plan(self, cache: KVCache, count: int) -> KVReduction:
        entries = torch.arange(cache.visual.shape[0], device=cache.visual.device)
        return best_entries(uniform(cache.seed.unsqueeze(1), entries), cache, count)

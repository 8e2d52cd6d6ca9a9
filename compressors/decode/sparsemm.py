"""SparseMM: a few heads look at pictures; give the cache to them, and to the others little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from foveate.compressors.base import KVCache, KVReducer, KVReduction
from foveate.compressors.choosing import rank, selection
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.quotas import shares
from foveate.compressors.registry import register
from foveate.compressors.signals import RECENT, Signal


class HeadScores(nn.Module):
    """How much each query head of each layer reacts to what is seen: (L, h), equal until they are measured."""

    def __init__(self, depth: int, heads: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.ones(depth, heads))


@register
@dataclass(frozen=True)
class SparseMM(Learned, KVReducer):
    """Each KV head keeps the visual entries that the last prompt tokens attend to, as many as its visual score earns.

    Paper:   Wang et al., ICCV 2025, https://arxiv.org/abs/2506.05344
    Code:    https://github.com/CR400AF-A/SparseMM, sparsemm_utils.py
    Formula: s[l, j] = share of all scores that the group of KV head j in layer l has; b = `count`, u = int(ratio b):
             capacity[l, j] = s[l, j] (b - u) L K, rounded, + u; a head keeps the largest of pool(recent_attention),
             the last 32 entries first
    Shapes:  scores (L, h), recent_attention (B, K, S) -> keep (B, K, M), count (B, K)
    Cost:    no matrix product beside the signal: 32 query rows of each layer.
    Differs: text always stays and is not counted, so budgets are of visual entries, and those among the last 32 come
             out of them; rounding is by largest remainder, so that capacities add up to the budget exactly (as the
             code's numbers do not always). As there, what a head cannot use is not handed on.

    Args:
        ratio: share of the budget that all heads get alike.
        kernel: width of the average over neighbouring entries; odd.
        network: scores of one host, as `foveate calibrate-heads` measures them.
    Raises:
        ValueError: `ratio` is outside [0, 1], `kernel` is even or below 1, the scores are of another model, or `count`
            is outside 1 .. visual entries.
        MissingWeights: there are no scores.
        MissingSignal: the host gave no `recent_attention`.
    """

    name = "sparsemm"
    stages = ("decode",)
    kinds = frozenset({"recent_attention"})
    text_guided = True
    made_by = "foveate calibrate-heads --model MODEL"
    paper = "Wang et al., ICCV 2025, https://arxiv.org/abs/2506.05344"
    fidelity = "paper"

    ratio: float = 0.1
    kernel: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"sparsemm: ratio {self.ratio} is outside [0, 1]")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"sparsemm: kernel {self.kernel} is not odd and at least 1")

    def build(self, widths: Widths, projector: Projector = ()) -> HeadScores:
        return HeadScores(widths.decoder_depth, widths.heads)

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("recent_attention", layer) for layer in range(depth))

    def capacities(self, count: int, heads: int) -> Tensor:
        """(L, heads) int64 visual entries of each KV head where their mean is to be `count`. Raises: ValueError."""
        scores = self.loaded.scores.detach().double().cpu()
        depth, queries = scores.shape
        if queries % heads:
            raise ValueError(f"sparsemm: scores of {queries} query heads for {heads} KV heads")
        floor = int(self.ratio * count)
        weight = scores.clamp(min=0).view(1, depth * heads, -1).sum(-1)
        given = shares(weight, torch.tensor([(count - floor) * depth * heads]))
        return given.view(depth, heads) + floor

    def budgets(self, n: int, count: int, layer: int, depth: int, heads: int, last: int) -> tuple[int, ...]:
        return tuple(self.capacities(count, heads)[layer].clamp(max=n).tolist())

    def plan(self, cache: KVCache, count: int) -> KVReduction:
        b, k, s, _ = cache.keys.shape
        score, since = cache.signals["recent_attention"].float(), max(0, s - RECENT)
        parts = [part for part in score.split([since, s - since], dim=-1) if part.shape[-1]]
        score = torch.cat([avg_pool1d(part, self.kernel, 1, self.kernel // 2) for part in parts], dim=-1)
        late = torch.arange(s, device=score.device) >= since
        tier = (late.int() + 2 * (~cache.visual).int()).expand_as(score)
        room = self.capacities(count, k)[cache.layer].to(score.device) + int((~cache.visual).sum())
        kept = selection((rank(score, tier) < room[:, None]).flatten(0, 1))
        used = None if kept.count is None else kept.count.view(b, k)
        return KVReduction(kept.anchor.view(b, k, -1), count=used)

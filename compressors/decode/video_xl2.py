"""Video-XL-2, bi-level cache: parts of a video that matter stay dense, the others are pooled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import KVCache, KVReducer, KVReduction, scaled
from foveate.compressors.choosing import rank
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class VideoXL2(KVReducer):
    """Pool the entries of each frame in runs, but leave the first, the last and the most relevant chunks as they are.

    Paper:   Qin et al., 2025, https://arxiv.org/abs/2506.19225
    Code:    https://github.com/VectorSpaceLab/Video-XL, folder Video-XL-2
    Formula: chunk = frame // `chunk`; a pooled frame's run of c entries becomes their mean, keys and values alike;
             dense are chunks first, last, then by falling relevance, as long as `count` lasts: with a share f dense
             the cache keeps f + (1 - f) / c
    Shapes:  frame_relevance (B, S), frame (S,) -> keep (B, K, M), into, weight (B, K, S)
    Cost:    no matrix product beside the signal: 32 query rows of one layer.
    Differs: relevance is read from files that a retriever made before; here it is the attention of the last prompt
             tokens in a middle layer. `count` is met exactly: what is left of it makes the next chunk's first runs
             dense; where even runs of c are too many, c grows. A run at the end of a frame may be shorter (there it
             is lost). Ids go on from the true length (there from the compressed one); the prompt's text was read
             behind the dense cache.

    Args:
        chunk: frames of a chunk; a frame is one step of the grid in time.
        pool: c.
        layer: where relevance is read, as (layer, depth there).
    Raises:
        ValueError: `chunk` or `pool` is below 1, or `count` is outside 1 .. visual entries.
        MissingSignal: the host gave no `frame_relevance`.
    """

    name = "video_xl2"
    stages = ("decode",)
    kinds = frozenset({"frame_relevance"})
    modality = "video"
    text_guided = True
    paper = "Qin et al., 2025, https://arxiv.org/abs/2506.19225"
    fidelity = "paper"

    chunk: int = 4
    pool: int = 4
    layer: tuple[int, int] = (14, 28)

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.pool < 1:
            raise ValueError(f"video_xl2: chunk {self.chunk} and pool {self.pool} must be at least 1")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("frame_relevance", scaled(self.layer, depth))})

    def plan(self, cache: KVCache, count: int) -> KVReduction:
        b, k, s, _ = cache.keys.shape
        at = cache.visual.nonzero()[:, 0]  # (n,)
        frame = torch.zeros_like(at) if cache.frame is None else cache.frame[at].clamp(min=0).cummax(0).values
        run = self._runs(frame, count)  # (n,) which run each visual entry is in
        inside = torch.arange(len(at), device=at.device) - torch.searchsorted(run, run)
        single = self._singles(run, frame // self.chunk, cache.signals["frame_relevance"][:, at].float(), count)
        begins = torch.ones(b, s, dtype=torch.bool, device=at.device)
        begins[:, at] = inside <= single[:, run]  # what is not single shares the slot of the first such in its run
        slot = begins.cumsum(1) - 1
        index = torch.arange(len(at), device=at.device)
        first = torch.where(begins[:, at], index, 0).cummax(1).values
        slot[:, at] = slot.gather(1, at[first])
        keep = begins.nonzero()[:, 1].view(b, -1)
        members = torch.zeros(keep.shape, device=at.device).scatter_add_(1, slot, torch.ones(b, s, device=at.device))
        weight = 1 / members.gather(1, slot)
        return KVReduction(*(x.unsqueeze(1).expand(-1, k, -1) for x in (keep, slot, weight)))

    def _runs(self, frame: Tensor, count: int) -> Tensor:
        """(n,) numbers of the runs that are pooled, at most `count` of them: of c entries, none across two frames; of
        whole frames where there are more than `count`."""
        _, unit, size = frame.unique_consecutive(return_inverse=True, return_counts=True)
        if len(size) > count:
            return unit * count // len(size)
        c = max(self.pool, len(frame) // count)
        while int((-(-size // c)).sum()) > count:
            c += 1
        inside = torch.arange(len(frame), device=frame.device) - (size.cumsum(0) - size)[unit]
        return (inside % c == 0).cumsum(0) - 1

    @staticmethod
    def _singles(run: Tensor, chunk: Tensor, relevance: Tensor, count: int) -> Tensor:
        """(B, runs) how many of the first entries of each run stay by themselves."""
        b, size = relevance.shape[0], run.bincount()
        _, chunk, many = chunk.unique_consecutive(return_inverse=True, return_counts=True)
        mean = relevance.new_zeros(b, len(many)).index_add_(1, chunk, relevance) / many
        tier = torch.zeros_like(mean)
        tier[:, -1], tier[:, 0] = 1, 2
        of_run = chunk[torch.searchsorted(run, torch.arange(len(size), device=run.device))]
        turn = rank(mean, tier)[:, of_run].argsort(dim=1, stable=True)  # runs in the order in which they become dense
        cost = (size - 1)[turn]
        left = (count - len(size)) - (cost.cumsum(1) - cost)
        return torch.zeros_like(cost).scatter_(1, turn, left.clamp(min=0).minimum(cost))

"""LongVLM: each segment of a long video becomes a few merged tokens, behind what CLS saw of the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens, apply, apply_position
from foveate.compressors.matching import merge_down, merge_flops
from foveate.compressors.planes import check_whole
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal

LEVELS = 24
"""Blocks of CLIP-L, behind each of which CLS is read."""


@register
@dataclass(frozen=True)
class LongVLM(Resampler):
    """ToMe within segments of frames, and before them the mean over all frames of CLS behind the tower's blocks.

    Paper:   Weng et al., ECCV 2024, https://arxiv.org/abs/2404.03384
    Code:    https://github.com/ziplab/LongVLM, longvlm/model/merge.py and longvlm.py
    Formula: in a segment of 10 frames repeat: even tokens find their best odd one by the cosine of features averaged
             over 16 groups of channels, and the r best merge, weighted by size, each round at most half, until m are
             left; G global tokens, the means over frames of CLS behind G blocks; K = G + the sum of all m
    Shapes:  x, cls_states (B, T N, C) -> (B, K, C) before the projector
    Cost:    2 (10 N / 2)^2 (C / 16) FLOPs for each segment in its first round, a quarter of it in each further one
    Differs: 100 frames there, sampled or interpolated to that, with 30 tokens in each segment and 25 global ones; here
             the clip is as it comes, its last segment may be shorter, and the count is shared as there: one token of 13
             is global, up to 24, from evenly spread blocks, the last one included. CLS before the first block, the
             25th there, is the same in every video and left out. A merged token takes the place of its odd one, in
             order, where the code puts unmerged ones first by score. Its projector was trained with this, a host's was
             not.

    Args:
        segment: frames of a segment.
        groups: of channels whose mean is compared; fewer where they do not divide the width.
        global_tokens: put CLS first.
    Raises:
        ValueError: `segment` or `groups` is below 1, tokens are not a whole grid, or `count` is not at least one for
            each segment.
        MissingSignal: the host gave no `cls_states`.
    """

    name = "longvlm"
    stages = ("projector",)
    kinds = frozenset({"cls_states"})
    modality = "video"
    positions = "renumber"
    requires_grid = True
    hook = "before"
    paper = "Weng et al., ECCV 2024, https://arxiv.org/abs/2404.03384"
    fidelity = "reference"

    segment: int = 10
    groups: int = 16
    global_tokens: bool = True

    def __post_init__(self) -> None:
        if self.segment < 1 or self.groups < 1:
            raise ValueError(f"longvlm: segment {self.segment} and groups {self.groups} must be at least 1")

    def signals(self, depth: int) -> frozenset[Signal]:
        if not self.global_tokens:
            return frozenset()
        return frozenset(Signal("cls_states", i * depth // LEVELS, f"l{i:02}") for i in range(LEVELS))

    def reachable(self, grid: Grid) -> Sequence[int]:
        return range(-(-grid[0] // self.segment), grid[0] * grid[1] * grid[2] + 1)

    def parts(self, grid: Grid, count: int) -> tuple[int, list[tuple[int, int, int]]]:
        """How many global tokens; of each segment the first token, the one behind its last, and what it becomes."""
        t, n = grid[0], grid[1] * grid[2]
        cuts = [*range(0, t, self.segment), t]
        whole = min(LEVELS, count // 13, count - (len(cuts) - 1)) if self.global_tokens else 0
        due = [(count - whole) * cut // t for cut in cuts]
        return whole, [(a * n, b * n, to - at) for (a, b), (at, to) in zip(pairwise(cuts), pairwise(due), strict=True)]

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        whole, segments = self.parts(tokens.grid, count)
        chosen = [LEVELS * (i + 1) // whole - 1 for i in range(whole)]
        x = [tokens.signals[f"cls_states.l{i:02}"].float().mean(dim=1, keepdim=True).to(tokens.x) for i in chosen]
        position = [torch.full_like(tokens.position[:, :1], -1)] * whole
        for first, last, left in segments:
            part, place = tokens.x[:, first:last], tokens.position[:, first:last]
            merged = merge_down(self.metric(part), tokens.size[:, first:last], left)
            place = apply_position(merged, place)
            order = place.argsort(dim=-1)
            x.append(apply(merged, part).gather(1, order.unsqueeze(-1).expand(-1, -1, part.shape[-1])))
            position.append(place.gather(1, order))
        return Resampled(torch.cat(x, dim=1), torch.cat(position, dim=1))

    def metric(self, x: Tensor) -> Tensor:
        """What tokens (B, n, C) are compared by, (B, n, C / groups)."""
        return x.float().unflatten(-1, (gcd(self.groups, x.shape[-1]), -1)).mean(dim=2)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        width = dim // gcd(self.groups, dim)
        return sum(merge_flops(last - first, left, width) for first, last, left in self.parts(grid, count)[1])

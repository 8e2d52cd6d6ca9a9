"""Choosing with stable ties: ranks, masks and the reductions that they stand for. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.tokens import KVCache, KVReduction, Reduction, inverse


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows of x (B, N, D) at index (B, K): (B, K, D). Rows are copied as wholes, a gather goes by entries."""
    b, n, d = x.shape
    flat = index + n * torch.arange(b, device=index.device).unsqueeze(-1)
    return x.reshape(b * n, d).index_select(0, flat.flatten()).view(b, -1, d)


def ranked(score: Tensor, tier: Tensor | None = None) -> Tensor:
    """Indices (..., N) by falling score, equal ones by rising index; with `tier`, a higher tier comes first."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    if tier is None:
        return order
    return order.gather(-1, tier.gather(-1, order).argsort(dim=-1, descending=True, stable=True))


def rank(score: Tensor, tier: Tensor | None = None) -> Tensor:
    """Each entry's place in `ranked(score, tier)`, from 0."""
    return inverse(ranked(score, tier))


def rank_within(score: Tensor, group: Tensor) -> Tensor:
    """Each entry's place among those of its group (B, N) int64 by falling score, from 0; equal ones by rising index."""
    order = ranked(score)
    named = group.gather(-1, order)
    by_group = named.argsort(dim=-1, stable=True)
    named, order = named.gather(-1, by_group), order.gather(-1, by_group)
    line = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    begins = torch.ones_like(named, dtype=torch.bool)
    begins[..., 1:] = named[..., 1:] != named[..., :-1]
    first = line.masked_fill(~begins, 0).cummax(dim=-1).values
    return torch.empty_like(order).scatter_(-1, order, line - first)


def some(mask: Tensor) -> Tensor:
    """(...) bool: any of mask (..., N). As the largest byte: along the last dimension `any` takes far longer."""
    return mask.view(torch.uint8).amax(dim=-1).bool()


def marked(like: Tensor, index: Tensor) -> Tensor:
    """(B, N) bool, true at index (B, K); `like` (B, N) gives shape and device."""
    return torch.zeros_like(like, dtype=torch.bool).scatter_(1, index, True)


def selection(mask: Tensor) -> Reduction:
    """The tokens where mask (B, N) is true, in order; with a count for each row where their numbers differ."""
    count = mask.sum(dim=-1)
    most = int(count.max())
    anchor = (~mask).long().argsort(dim=-1, stable=True)[:, :most]
    if int(count.min()) == most:
        return Reduction(anchor)
    used = torch.arange(most, device=mask.device) < count.unsqueeze(-1)
    return Reduction(anchor.masked_fill(~used, -1), count=count)


def best_entries(score: Tensor, cache: KVCache, count: int) -> KVReduction:
    """All text and the `count` visual entries of largest score (B, S), in every head the same; equal ones by index."""
    stay = len(cache.visual) - int(cache.visual.sum()) + count
    keep = ranked(score.masked_fill(~cache.visual, torch.inf))[:, :stay].sort(dim=-1).values
    return KVReduction(keep.unsqueeze(1).expand(-1, cache.keys.shape[1], -1))


def first_max(value: Tensor, segment: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """The largest entry of each segment and where it stands.

    Args:
        value: (B, N) float32; -inf = not to be chosen.
        segment: (B, N) int64 in 0 .. segments - 1.
        segments: how many there are.
    Returns:
        (B, segments) largest value, -inf where there is none; (B, segments) int64 lowest index that has it, else N.
    """
    b, n = value.shape
    best = value.new_full((b, segments), -torch.inf).scatter_reduce_(1, segment, value, "amax")
    index = torch.arange(n, device=value.device).expand(b, n)
    is_best = (value == best.gather(1, segment)) & (value > -torch.inf)
    where = torch.full((b, segments), n, device=value.device)
    return best, where.scatter_reduce_(1, segment, index.masked_fill(~is_best, n), "amin")

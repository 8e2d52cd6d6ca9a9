"""Clusters of alike neighbours, and the members that stand for each. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.compressors.choosing import first_max, selection
from foveate.compressors.tokens import Grid, Reduction


def components(joined: Tensor) -> Tensor:
    """The connected component of each node of symmetric graphs (B, N, N) bool, named by its lowest index: (B, N)."""
    b, n, _ = joined.shape
    label = torch.arange(n, device=joined.device).expand(b, n)
    small = torch.int16 if n < 2**14 else torch.int32  # few bytes; and a sum, since a choice by a mask takes far longer
    apart = (~joined).to(small) * n
    while True:
        lowest = (apart + label.to(small).unsqueeze(1)).amin(dim=-1).minimum(label)
        lowest = lowest.gather(1, lowest)  # a shortcut: what my neighbour's label knows by now
        if torch.equal(lowest, label):
            return label
        label = lowest


def sizes(label: Tensor) -> Tensor:
    """Members of each cluster, at its label: (B, N) int64, 0 where no cluster has this name."""
    return torch.zeros_like(label).scatter_add_(1, label, torch.ones_like(label))


def close(position: Tensor, grid: Grid, reach: int) -> Tensor:
    """(B, N, N) bool: tokens of one frame, at most `reach` rows and columns apart; without a place close to none."""
    _, h, w = grid
    at = torch.stack([position // (h * w), position % (h * w) // w, position % w]).to(torch.int16)  # (3, B, N)
    apart = (at.unsqueeze(-1) - at.unsqueeze(-2)).abs()  # (3, B, N, N)
    placed = position >= 0
    near = (apart[0] == 0) & (apart[1] <= reach) & (apart[2] <= reach)
    return near & placed.unsqueeze(-1) & placed.unsqueeze(-2)


def grown(likeness: Tensor, near: Tensor, threshold: float, step: float, largest: float) -> Tensor:
    """Clusters of tokens joined by likeness where they are near; too large ones are split by a higher threshold.

    Args:
        likeness: (B, N, N) cosines.
        near: (B, N, N) bool, who may be joined at all.
        threshold: cosine that joins.
        step: what is added to it for a cluster that is too large, up to 1.
        largest: members that a cluster may have.
    Returns:
        (B, N) int64 label, the lowest index of the cluster.
    """
    label = components(near & (likeness >= threshold))
    while threshold < 1:
        too_large = sizes(label).gather(1, label) > largest
        if not bool(too_large.any()):
            return label
        threshold = min(1.0, threshold + step)
        same = label.unsqueeze(1) == label.unsqueeze(2)
        label = torch.where(too_large, components(near & same & (likeness >= threshold)), label)
    return label


def representatives(likeness: Tensor, label: Tensor, first: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    """Farthest-first members of every cluster, all clusters at once.

    Args:
        likeness: (B, N, N) cosines.
        label: (B, N) from `components`.
        first: (B, N) float32; the largest in a cluster is its first representative. Ties: the lower index.
        quota: (B, N) int64, at each label how many stand for that cluster, at most its members.
    Returns:
        (B, N) bool, the representatives; (B, N) int64, the representative of its cluster that each token is most like,
        itself where it is one, -1 where the cluster has none.
    """
    b, n = label.shape
    index = torch.arange(n, device=label.device).expand(b, n)
    wanted = quota.gather(1, label)
    chosen = torch.zeros(b, n + 1, dtype=torch.bool, device=label.device)  # place n: where no cluster chooses
    nearest, owner = torch.full_like(first, -torch.inf), torch.full_like(label, -1)
    for step in range(int(quota.max())):
        key = (first if step == 0 else -nearest).masked_fill(chosen[:, :n] | (wanted <= step), -torch.inf)
        pick = first_max(key, label, n)[1]
        chosen.scatter_(1, pick, True)
        mine = pick.gather(1, label)
        like = likeness.gather(2, mine.clamp(max=n - 1).unsqueeze(-1)).squeeze(-1)
        closer = (mine < n) & (like > nearest)
        nearest, owner = torch.where(closer, like, nearest), torch.where(closer, mine, owner)
    return chosen[:, :n], torch.where(chosen[:, :n], index, owner)


def means(stands: Tensor, group: Tensor, size: Tensor) -> Reduction:
    """Slots that are means over groups, weighted by size: each is named by its representative, N is the background.

    Args:
        stands: (B, N) bool, the representatives.
        group: (B, N) int64 a representative, N, or -1 for tokens that are dropped.
        size: (B, N) original tokens that each stands for.
    """
    b, n = stands.shape
    number = stands.sum(dim=-1)
    has_more = (group == n).any(dim=-1)
    slots = int((number + has_more).max())
    slot = torch.cat([stands.cumsum(dim=-1) - 1, number.unsqueeze(-1)], dim=1)  # (B, N + 1)
    into = slot.gather(1, group.clamp(min=0)).masked_fill(group < 0, -1)
    total = torch.zeros(b, slots + 1, device=size.device)
    total.scatter_add_(1, into.masked_fill(into < 0, slots), size)
    weight = size / total.gather(1, into.clamp(min=0)).clamp(min=1e-6)
    kept = selection(stands).anchor
    anchor = pad(kept, (0, slots - kept.shape[1]), value=-1)
    used = number + has_more
    count = None if bool((used == slots).all()) else used
    return Reduction(anchor, into.unsqueeze(-1), weight.unsqueeze(-1), count)


def summed(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Rows of x (B, N, R) added up by group (B, N) in 0 .. groups - 1: (B, groups, R)."""
    b, _, r = x.shape
    into = group + groups * torch.arange(b, device=x.device).unsqueeze(-1)
    return x.new_zeros(b * groups, r).index_add_(0, into.flatten(), x.flatten(0, 1)).view(b, groups, r)

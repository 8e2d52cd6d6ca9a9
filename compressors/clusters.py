"""Clusters of alike neighbours, and the members that stand for each. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.choosing import first_max
from foveate.compressors.tokens import Grid


def components(joined: Tensor) -> Tensor:
    """The connected component of each node of symmetric graphs (B, N, N) bool, named by its lowest index: (B, N)."""
    b, n, _ = joined.shape
    label = torch.arange(n, device=joined.device).expand(b, n)
    while True:
        lowest = torch.where(joined, label.unsqueeze(1), n).amin(dim=-1).minimum(label)
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

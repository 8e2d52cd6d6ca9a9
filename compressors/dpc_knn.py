"""DPC-KNN: centres are points that are dense and far from denser ones. Knows tensors only.

Chat-UniVi and PruneVid cluster frames and tokens by it: Du et al., Knowledge-Based Systems 2016,
https://doi.org/10.1016/j.knosys.2016.02.001
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.choosing import rank
from foveate.compressors.matching import rounded


def clustered(x: Tensor, member: Tensor, count: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Clusters of the points of each group, all groups at once.

    d[i, j] = |x[i] - x[j]| / sqrt(C); density = exp(-mean of d^2 to the k nearest, itself included); delta = distance
    to the nearest denser point, of the densest one the largest distance there is. Centres are the largest products of
    both, the others go to the nearest centre. Of equal densities the lower index is the denser one (published code adds
    noise), and equal products and distances go to the lower index.

    Args:
        x: (G, n, C) points.
        member: (G, n) bool, which of them are there.
        count: (G,) int64 centres of each group, at most its members.
        neighbours: k; a smaller group counts all of its points.
    Returns:
        (G, n) bool, the centres; (G, n) int64, the index of each member's centre, -1 where it has none.
    """
    product, _, distance = peaks(x, member, neighbours)
    centre = (rank(product) < count.unsqueeze(-1)) & member
    nearest_one = distance.masked_fill(~centre.unsqueeze(1), torch.inf).min(dim=-1).indices
    owner = torch.where(centre, torch.arange(x.shape[1], device=x.device), nearest_one)
    return centre, owner.masked_fill(~member | ~centre.any(dim=-1, keepdim=True), -1)


def peaks(x: Tensor, member: Tensor, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """What centres are chosen by, see `clustered`: (G, n) density * delta, -1 where nobody is; (G, n) density; and
    (G, n, n) distances."""
    square = squared(x.float(), member)
    nearest = square.topk(min(neighbours, x.shape[1]), dim=-1, largest=False).values
    there = nearest < torch.inf
    mean = nearest.masked_fill(~there, 0).sum(dim=-1) / there.sum(dim=-1).clamp(min=1)
    density = torch.exp(-mean).masked_fill(~member, -1)
    distance, place = square.sqrt(), rank(density)
    denser = place.unsqueeze(1) < place.unsqueeze(2)  # [i, j]: j is denser than i
    delta = (distance + (1 / denser.float() - 1)).amin(dim=-1)  # plus 0 or infinity: a choice by a mask takes longer
    largest = distance.masked_fill(distance == torch.inf, 0).flatten(1).amax(dim=-1, keepdim=True)
    delta = torch.where(delta < torch.inf, delta, largest)
    return (density * delta).masked_fill(~member, -1), density, distance


def unit_scale(x: Tensor) -> Tensor:
    """Features (B, N, C) at mean square 1 in each row, in float32: densities of another tower's stay comparable."""
    return x.float() / x.float().square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)


def squared(x: Tensor, member: Tensor) -> Tensor:
    """(G, n, n) squared distances of x (G, n, C), divided by C; infinite where one of both is no member.

    They are rounded to 2^-20 of the largest in the group, so that equal points lie at no distance.
    """
    total = (x * member.unsqueeze(-1)).sum(dim=1, keepdim=True)
    x = x - total / member.sum(dim=1).clamp(min=1).view(-1, 1, 1)  # small numbers lose less
    norm = (x * x).sum(dim=-1)
    square = (norm.unsqueeze(2) + norm.unsqueeze(1) - 2 * (x @ x.mT)).clamp(min=0) / x.shape[-1]
    pair = member.unsqueeze(2) & member.unsqueeze(1)
    scale = square.masked_fill(~pair, 0).amax(dim=(1, 2), keepdim=True).clamp(min=1e-20)
    square = (rounded(square / scale) * scale).masked_fill(~pair, torch.inf)
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device) & pair
    return square.masked_fill(own, 0)


def flops(groups: int, n: int, dim: int) -> int:
    """Matrix FLOPs of `clustered`: all distances in each group."""
    return 2 * groups * n * n * dim

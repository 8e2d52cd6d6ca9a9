"""Maximum spanning forests of weighted graphs: what is connected at every threshold at once. Knows tensors only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.matching import STEP


@dataclass(frozen=True)
class Forest:
    """The heaviest edges that connect what can be connected: above any threshold they join what all edges join.

    Attributes:
        weight: (B, N) float32 of its edges, falling; -inf in places beyond the row's number of edges.
        ends: (2, B, N) int64 nodes that each edge joins.
    """

    weight: Tensor
    ends: Tensor

    def parts(self, tau: Tensor) -> Tensor:
        """(B, N) the component of each node where edges above tau (B, 1) join, named by its lowest node."""
        joins = self.weight > tau
        one, other = self.ends[0], torch.where(joins, self.ends[1], self.ends[0])
        label = torch.arange(one.shape[1], device=one.device).expand_as(one)
        while True:
            left, right = label.gather(1, one), label.gather(1, other)
            if torch.equal(left, right):
                return label
            lower = left.minimum(right)
            label = label.scatter_reduce(1, left, lower, "amin").scatter_reduce_(1, right, lower, "amin")
            label = label.gather(1, label)
            label = label.gather(1, label)  # what those that I point at know by now


def spanning(likeness: Tensor, allowed: Tensor) -> Forest:
    """The forest of symmetric likeness (B, N, N), multiples of 2^-20, over allowed pairs (B, N, N) bool.

    In each round every tree takes its heaviest edge to another one, and trees that meet are one node of the next
    round. Weight and nodes of an edge are one number, so that no two edges are equal and none closes a circle.
    """
    b, n, _ = likeness.shape
    index = torch.arange(n, device=likeness.device)
    key = likeness.double().mul_(n * n / STEP).sub_((index * n).double().unsqueeze(1)).sub_(index.double())
    key.masked_fill_(~allowed, -torch.inf)
    tree, found = index.expand(b, n), []
    while True:
        key.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        best = key.amax(dim=1).maximum(key.amax(dim=2))  # (B, C) over trees, by the lower number of each pair
        taken = best > -torch.inf
        if not bool(taken.any()):
            break
        one, other = ends(best, n)
        own = torch.arange(best.shape[1], device=best.device)
        to = tree.gather(1, one) + tree.gather(1, other) - own  # the end that is not mine
        to = torch.where(taken, to, own)
        root = (to.gather(1, to) == own) & (own <= to)  # of two that took the same edge, the lower one
        root &= own <= tree.amax(dim=-1, keepdim=True)  # other rows may have more trees
        found.append(best.masked_fill(root, -torch.inf))
        number = root.cumsum(dim=-1)
        into = (number - 1).gather(1, pointed(torch.where(root, own, to)))
        tree, trees = into.gather(1, tree), int(number[:, -1].max())
        key = merged(merged(key, into, trees).mT.contiguous(), into, trees)
    every = torch.cat([*found, key.new_full((b, n), -torch.inf)], dim=1)
    heaviest = every.sort(dim=-1, descending=True).values[:, :n]
    weight = ((heaviest / (n * n)).ceil() * STEP).float()
    return Forest(weight, torch.stack(ends(heaviest, n)))


def ends(key: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Both nodes of edges given as one number each; any where that is -inf."""
    pair = (-key.nan_to_num(nan=0.0, neginf=0.0)).remainder(n * n).long()
    return pair // n, pair % n


def merged(key: Tensor, into: Tensor, trees: int) -> Tensor:
    """(B, trees, M) the largest entries of the rows of key (B, C, M) that go into the same; into: (B, C) int64."""
    b, _, m = key.shape
    flat = (into + trees * torch.arange(b, device=into.device).unsqueeze(-1)).flatten()
    out = key.new_full((b * trees, m), -torch.inf)  # whole rows along dimension 0 are many times as fast as others
    return out.scatter_reduce_(0, flat.unsqueeze(1).expand(-1, m), key.flatten(0, 1), "amax").view(b, trees, m)


def pointed(label: Tensor) -> Tensor:
    """(B, N) where chains of pointers (B, N) end; an end points at itself."""
    while True:
        further = label.gather(1, label)
        if torch.equal(further, label):
            return label
        label = further

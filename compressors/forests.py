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
            label = pointed(label)


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
        _, one, other = read(best, n)
        own = torch.arange(best.shape[1], device=best.device)
        to = tree.gather(1, one) + tree.gather(1, other) - own  # the end that is not mine
        to = torch.where(taken, to, own)
        root = (to.gather(1, to) == own) & (own <= to)  # of two that took the same edge, the lower one
        root &= own <= tree.amax(dim=-1, keepdim=True)  # other rows may have more trees
        found.append(best.masked_fill(root, -torch.inf))
        number = root.long().cumsum(dim=-1) - 1
        into = number.gather(1, pointed(torch.where(root, own, to)))
        tree = into.gather(1, tree)
        key = merged(merged(key, into).mT.contiguous(), into)
    every = torch.cat([*found, key.new_full((b, n), -torch.inf)], dim=1)
    weight, one, other = read(every.sort(dim=-1, descending=True).values[:, :n], n)
    return Forest(weight, torch.stack([one, other]))


def read(key: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (float32, -inf where there is no edge) and both nodes of edges given as one number each."""
    there = key > -torch.inf
    key = key.masked_fill(~there, 0)
    whole = (key / (n * n)).ceil()
    pair = (whole * (n * n) - key).long()
    weight = (whole * STEP).float().masked_fill(~there, -torch.inf)
    return weight, pair // n, pair % n


def merged(key: Tensor, into: Tensor) -> Tensor:
    """(B, C', M) the largest entries of the rows of key (B, C, M) that go into the same of C' rows; into: (B, C)."""
    (b, _, m), most = key.shape, int(into.max()) + 1
    flat = (into + most * torch.arange(b, device=into.device).unsqueeze(-1)).flatten()
    out = key.new_full((b * most, m), -torch.inf)  # whole rows along dimension 0 are many times as fast as others
    return out.scatter_reduce_(0, flat.unsqueeze(1).expand(-1, m), key.flatten(0, 1), "amax").view(b, most, m)


def pointed(label: Tensor) -> Tensor:
    """(B, N) where chains of pointers (B, N) end; an end points at itself."""
    while True:
        further = label.gather(1, label)
        if torch.equal(further, label):
            return label
        label = further

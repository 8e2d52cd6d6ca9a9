"""SeqCompression: cluster the projected tokens, hand on the mean of every cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import ranked
from foveate.compressors.clusters import means, summed
from foveate.compressors.matching import rounded
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class SeqCompression(Reducer):
    """K-means over the projected tokens of a picture or a whole clip; each cluster's mean stands for it.

    Paper:   Omri, Shroff, Tambe, 2025, https://arxiv.org/abs/2504.17892
    Code:    none found.
    Formula: centres start at the token nearest to the mean of all, then at the one farthest from its nearest centre,
             again and again; a token joins the nearest centre, centres move to their tokens' mean, until nothing
             changes; slot = mean of the cluster's tokens, at the first of them
    Shapes:  x (B, N, D) -> into, weight (B, N, 1)
    Cost:    2 B N^2 D FLOPs: all distances follow from one product of the tokens with themselves.
    Differs: the paper reports clustering and aggregating, not which clustering, metric or order; these are inferred. An
             empty cluster takes the token farthest from its centre. Fewer distinct tokens than the count: fewer slots.

    Args:
        metric: "euclidean" or "cosine", on which tokens are clustered; means are of the tokens as they are.
        rounds: of moving centres, at most.
    Raises:
        ValueError: `metric` is unknown, `rounds` is below 0, or `count` is outside 1..N.
    """

    name = "seq_compression"
    stages = ("projector",)
    adaptive = True
    positions = "renumber"
    paper = "Omri, Shroff, Tambe, 2025, https://arxiv.org/abs/2504.17892"
    fidelity = "reconstruction"

    metric: str = "euclidean"
    rounds: int = 10

    def __post_init__(self) -> None:
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"seq_compression: metric {self.metric!r} is neither 'euclidean' nor 'cosine'")
        if self.rounds < 0:
            raise ValueError(f"seq_compression: rounds {self.rounds} is below 0")

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        b, n, _ = tokens.x.shape
        index = torch.arange(n, device=tokens.x.device).expand(b, n)
        if count == n:
            return Reduction(index)
        x = tokens.x.float()
        products = centred_products(normalize(x, dim=-1) if self.metric == "cosine" else x)
        cluster = farthest_first(products, count)
        for _ in range(self.rounds):
            after = moved(products, cluster, count)
            if torch.equal(after, cluster):
                break
            cluster = after
        first = torch.full((b, count), n, device=index.device).scatter_reduce_(1, cluster, index, "amin")
        stands = first.gather(1, cluster)  # (B, N)
        return means(stands == index, stands, torch.ones_like(tokens.size))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * n * n * dim if count < n else 0


def centred_products(x: Tensor) -> Tensor:
    """Inner products (B, N, N) of tokens x (B, N, D) from their mean, in units of their mean square distance to it."""
    x = x - x.mean(dim=1, keepdim=True)
    products = x @ x.mT
    unit = products.diagonal(dim1=1, dim2=2).mean(dim=-1).clamp(min=1e-30)
    return rounded(products / unit.view(-1, 1, 1))


def farthest_first(products: Tensor, count: int) -> Tensor:
    """The cluster (B, N) in 0 .. count - 1 that each token joins when centres are tokens, each far from all before."""
    square = products.diagonal(dim1=1, dim2=2)
    pick = square.argmin(dim=-1, keepdim=True)
    nearest, cluster = torch.full_like(square, torch.inf), torch.zeros_like(square, dtype=torch.int64)
    for k in range(count):
        row = products.gather(1, pick.unsqueeze(-1).expand(-1, -1, square.shape[1])).squeeze(1)
        distance = square + square.gather(1, pick) - 2 * row
        closer = distance < nearest
        nearest, cluster = torch.where(closer, distance, nearest), cluster.masked_fill(closer, k)
        pick = nearest.argmax(dim=-1, keepdim=True)
    return cluster


def distances(products: Tensor, cluster: Tensor, count: int) -> Tensor:
    """(B, N, count) squared distance of each token to the mean of each cluster; inf where a cluster is empty."""
    number = torch.zeros(*cluster.shape[:1], count, device=products.device)
    number.scatter_add_(1, cluster, torch.ones_like(cluster, dtype=torch.float32))
    to_mean = summed(products, cluster, count).mT / number.clamp(min=1).unsqueeze(1)
    own = to_mean.gather(2, cluster.unsqueeze(-1)).squeeze(-1)
    mean_square = torch.zeros_like(number).scatter_add_(1, cluster, own) / number.clamp(min=1)
    found = products.diagonal(dim1=1, dim2=2).unsqueeze(-1) - 2 * to_mean + mean_square.unsqueeze(1)
    return rounded(found).masked_fill((number == 0).unsqueeze(1), torch.inf)


def moved(products: Tensor, cluster: Tensor, count: int) -> Tensor:
    """Clusters (B, N) after centres have moved to their means; the empty ones take the tokens farthest from theirs."""
    nearest, after = distances(products, cluster, count).min(dim=-1)
    empty = torch.zeros(after.shape[0], count, device=after.device).scatter_(1, after, 1) == 0
    take = (empty.cumsum(dim=-1) - 1).clamp(min=0)  # the e-th empty cluster takes the e-th farthest token
    token = ranked(nearest).gather(1, take)
    wanted = empty & (nearest.gather(1, token) > 0)
    target = torch.where(wanted, torch.arange(count, device=after.device), -1)
    chosen = torch.full_like(after, -1).scatter_reduce_(1, token, target, "amax")
    return torch.where(chosen >= 0, chosen, after)

"""PAR: retrieve the clusters that the question speaks of, and let a few members stand for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import marked, ranked, selection
from foveate.compressors.clusters import close, grown, means, representatives, sizes
from foveate.compressors.matching import cosine
from foveate.compressors.quotas import capped
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class PAR(Reducer):
    """Cluster alike neighbours, keep the clusters nearest to the question's phrases, merge each into representatives.

    Paper:   Liu et al., 2024, https://arxiv.org/abs/2410.07278
    Code:    none found.
    Formula: g[n] = max_p weight_p cos(V[n], U[p]), standardised; G = (max + mean of g) / 2 in a cluster; clusters are
             taken by falling G until they hold 3 count tokens; their quotas are in proportion to
             softmax(G / temperature) sqrt(members); members farthest from each other stand for the others, which are
             averaged into the one that they are most like
    Shapes:  x (B, N, D), phrase_similarity (B, 3, N) -> into, weight (B, N, 1)
    Cost:    2 B N^2 D FLOPs
    Differs: the paper tells the parts (retrieval by the prompt, graph clusters, routing inside) and no formula: all
             numbers here are this project's. A cluster that gets no place is dropped as a whole. A count of one is the
             cluster of the most relevant token. Where the question has no words at all, G is a cluster's size.

    Args:
        weights: of entities, actions and the sentence as a whole.
        threshold: cosine that joins two tokens at most `reach` rows and columns apart; clusters of more than an eighth
            of all tokens are split by one that is higher by 0.05, and so on.
        reach: see `threshold`.
        temperature: of the softmax over clusters.
        route: "merge" members into representatives, or "drop" them.
        keep_background: one of the slots is the mean of all that was not retrieved, where there is any.
        automatic: clusters with G > 0 get ceil(sqrt(members)) places each; `count` is then a ceiling.
    Raises:
        ValueError: `route` is unknown, a weight or the temperature is not positive, or `count` is outside 1..N.
        MissingSignal: the host gave no `phrase_similarity`.
    """

    name = "par"
    stages = ("outside",)
    kinds = frozenset({"phrase_similarity"})
    text_guided = True
    adaptive = True
    positions = "renumber"
    paper = "Liu et al., 2024, https://arxiv.org/abs/2410.07278"
    fidelity = "reconstruction"

    weights: tuple[float, float, float] = (1.0, 0.7, 0.5)
    threshold: float = 0.8
    reach: int = 2
    temperature: float = 0.5
    route: str = "merge"
    keep_background: bool = False
    automatic: bool = False

    def __post_init__(self) -> None:
        if self.route not in ("merge", "drop"):
            raise ValueError(f"par: route {self.route!r} is neither 'merge' nor 'drop'")
        if len(self.weights) != 3 or min(*self.weights, self.temperature) <= 0:
            raise ValueError(f"par: weights {self.weights} and temperature {self.temperature} must be above 0")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("phrase_similarity")})

    def relevance(self, similar: Tensor) -> tuple[Tensor, Tensor]:
        """g (B, N) of `phrase_similarity`, standardised, and (B, 1) bool: the question has any phrase."""
        weight = torch.tensor(self.weights, device=similar.device).view(3, 1)
        g = (similar.float() * weight).amax(dim=1)
        known = g.isfinite().all(dim=-1, keepdim=True)
        g = torch.where(known, g, torch.zeros_like(g))
        g = g - g.mean(dim=-1, keepdim=True)
        return g / g.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6), known

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        n = tokens.n
        likeness = cosine(tokens.x, tokens.x)
        near = close(tokens.position, tokens.grid, self.reach)
        label = grown(likeness, near, self.threshold, 0.05, n / 8)
        g, known = self.relevance(tokens.signals["phrase_similarity"])
        members = sizes(label)
        quota, retrieved = self.quotas(g, known, label, members, count)
        stands, owner = representatives(likeness, label, g, quota)
        background = ~retrieved.gather(1, label) & (self.keep_background and count > 1)
        if self.route == "drop" and not bool(background.any()):
            return selection(stands)
        group = torch.where(background, n, owner if self.route == "merge" else owner.masked_fill(~stands, -1))
        return means(stands, group, tokens.size)

    def quotas(self, g: Tensor, known: Tensor, label: Tensor, members: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(B, N) int64 places of each cluster, at its label, and (B, N) bool, the clusters that are retrieved."""
        exists = members > 0
        highest = torch.full_like(g, -torch.inf).scatter_reduce_(1, label, g, "amax")
        mean = torch.zeros_like(g).scatter_add_(1, label, g) / members.clamp(min=1)
        score = torch.where(known, (highest + mean) / 2, members.float()).masked_fill(~exists, -torch.inf)
        order = ranked(score)
        before = members.gather(1, order).cumsum(dim=-1) - members.gather(1, order)
        retrieved = torch.zeros_like(exists).scatter_(1, order, before < min(g.shape[1], 3 * count)) & exists
        if count == 1:  # of the most relevant token, else of the best cluster
            best = torch.where(known, label.gather(1, ranked(g)[:, :1]), order[:, :1])
            return marked(g, best).long(), marked(g, best) | retrieved
        left = (exists & ~retrieved).any(dim=-1) & self.keep_background
        total = count - left.long()
        if self.automatic:
            wanted = members.float().sqrt().ceil().long() * ((score > 0) & exists | marked(g, order[:, :1]))
            wanted = wanted.gather(1, order)
            room = (total.unsqueeze(-1) - (wanted.cumsum(dim=-1) - wanted)).clamp(min=0)
            quota = torch.zeros_like(members).scatter_(1, order, wanted.minimum(room))
            return quota, quota > 0
        weight = (score / self.temperature).masked_fill(~retrieved, -torch.inf).softmax(dim=-1) * members.sqrt()
        return capped(weight, members * retrieved, total), retrieved

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * n * n * dim

"""QG-VTC: deep in the tower keep the tokens that the question asks for; they take up what they attend to of others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import marked, ranked, rows
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import linear_flops
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling, geometric
from foveate.compressors.signals import Signal
from foveate.compressors.tokens import apply_flops

FLOOR = 1e-6
"""The least attention that counts where a kept token's shares of the others are made to add up to one."""


class Network(nn.Module):
    """A question in the tower's space: an MLP; at each site a correction and a scale of its own, both zero at first.

    Args:
        text: P of a question's vector.
        width: C of the tower.
        sites: at most how many.
        rank: of the corrections.
    """

    def __init__(self, text: int, width: int, sites: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text)
        self.up, self.down = nn.Linear(text, width), nn.Linear(width, width, bias=False)
        self.u = nn.Parameter(torch.zeros(sites, width, rank))
        self.v = nn.Parameter(torch.randn(sites, rank, width) / math.sqrt(width))
        self.scale = nn.Parameter(torch.zeros(sites))

    def forward(self, question: Tensor, site: int) -> Tensor:
        """(B, P) -> (B, C), with which tokens at this site are compared."""
        q = self.down(gelu(self.up(self.norm(question))))
        return q + q @ self.u[site] @ self.v[site]

    def flops(self) -> int:
        """Of one question at one site."""
        return linear_flops(self.up, 1) + linear_flops(self.down, 1) + 4 * self.u[0].numel()


@register
@dataclass(frozen=True)
class QgVtc(Learned, Reducer):
    """Rank tokens by their product with a learned image of the question, at three deep blocks; recycle the others.

    Paper:   Li et al., 2025, https://arxiv.org/abs/2504.00654
    Code:    announced in the abstract, not found.
    Formula: q = W2 gelu(W1 LN(t) + b); r[n] = <q, (I + U V) LN(z[n])> / sqrt(C), U and V of each site; the largest r
             stay: z[j] = g[j] z[j] + s beta[j] sum_i B[j, i] z[i] over those lost, with B their attention A[j, i] made
             to add up to one, beta[j] = sum_i A[j, i], s of each site, and g[j] = 1 with the gradient of sigmoid(r[j])
    Shapes:  question (B, P), attention_map (B, N, N), x (B, N, C) -> into, weight (B, N, count)
    Cost:    2 (P C + C^2 + 2 rank C + N C) + 2 N count C at each site, beside its attention map.
    Differs: of the paper only the outline is known: a text encoder's vector and an MLP into the tower's space, ranking
             by correlation, soft recycling by attention, several deep layers; the rest is ours. Attention is that of
             the block that the site is in, mean over heads, and acts between it and the MLP; what is taken up are the
             tokens as they are, since a reduction is linear: no value matrix. Counts fall geometrically over the
             blocks 11, 15 and 19 of CLIP-L, of whose 24 blocks 23 run. Distilled as all others are, without a term of
             its own for the ranking.

    Args:
        layers: blocks among 23.
        rank: of U V.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `layers` or `rank` is not positive, the host has no text tower, or `count` is outside 1..N.
        MissingSignal: the host gave no `attention_map` or no `question`.
    """

    name = "qg_vtc"
    stages = ("encoder",)
    kinds = frozenset({"attention_map", "question"})
    text_guided = True
    positions = "renumber"
    paper = "Li et al., 2025, https://arxiv.org/abs/2504.00654"
    fidelity = "reconstruction"

    layers: tuple[int, ...] = (11, 15, 19)
    rank: int = 16

    def __post_init__(self) -> None:
        if not self.layers or min(*self.layers, self.rank) < 1:
            raise ValueError(f"qg_vtc: layers {self.layers} or rank {self.rank}: each must be 1 or more")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        if widths.text < 1:
            raise ValueError("qg_vtc: needs a text tower, and this host has none")
        return Network(widths.text, widths.visual, len(self.blocks(widths.encoder_depth)), self.rank)

    def blocks(self, depth: int) -> list[int]:
        """Where it acts; blocks of a shallow tower that fall together are one."""
        return sorted({scaled((layer, 23), depth) for layer in self.layers})

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("question"), *(Signal("attention_map", block) for block in self.blocks(depth))})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        blocks = self.blocks(depth)
        return falling(n, blocks, geometric(n, count, len(blocks)))  # only last ones can fall away: site = block

    def relevance(self, tokens: Tokens) -> Tensor:
        """(B, N) float32, higher stays."""
        q = self.run(tokens.signals["question"].float(), tokens.site)
        z = layer_norm(tokens.x.float(), tokens.x.shape[-1:])
        return (z @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1])

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        relevance = self.relevance(tokens)
        kept = ranked(relevance)[:, :count].sort(dim=-1).values
        stays = marked(relevance, kept)
        own = kept.unsqueeze(1) == torch.arange(tokens.n, device=kept.device).unsqueeze(-1)  # (B, N, K)
        paid = rows(tokens.signals["attention_map"].float(), kept)
        taken = self.loaded.scale[tokens.site].float() * taking(paid, stays) * shares(paid, stays)  # (B, K, N)
        gate = relevance.sigmoid()
        gate = 1 + (gate - gate.detach())  # brackets: exactly one
        slots = torch.arange(count, device=kept.device).expand_as(own)
        into = slots.masked_fill(stays.unsqueeze(-1) & ~own, -1)
        return Reduction(kept, into, torch.where(own, gate.unsqueeze(-1), taken.mT))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops() + 2 * n * dim + apply_flops(n, count, count, dim)


def shares(paid: Tensor, stays: Tensor) -> Tensor:
    """B (B, K, N), of each lost token in what a kept one takes up: they add up to one where any is lost; others 0.

    Args:
        paid: (B, K, N) attention of the kept tokens.
        stays: (B, N) bool, which tokens these are.
    """
    lost = paid.clamp(min=FLOOR).masked_fill(stays.unsqueeze(1), 0)
    return lost / lost.sum(dim=-1, keepdim=True).clamp(min=FLOOR)


def taking(paid: Tensor, stays: Tensor) -> Tensor:
    """beta (B, K, 1), attention that each kept token pays to all that are lost; arguments as for `shares`."""
    return paid.masked_fill(stays.unsqueeze(1), 0).sum(dim=-1, keepdim=True)

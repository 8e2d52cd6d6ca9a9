"""AdaTP: more tokens for the stretches of a video that the question is about, and no place twice in a stretch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import rank, rank_within, selection
from foveate.compressors.matching import cosine_to
from foveate.compressors.quotas import one_each
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling, geometric
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class AdaTP(Reducer):
    """Cut the video where neighbouring frames differ, share the budget by relevance, and spread it over places.

    Paper:   Sun et al., EMNLP Findings 2025, https://arxiv.org/abs/2505.20100
    Code:    none published.
    Formula: frames i, i + 1 are one segment where cos(v[i], v[i + 1]) >= tau; w = softmax_s(mean cos(question, v) / t);
             segment s gets K ((1 - g) frames(s) / frames + g w[s]), at least 1; in it the most attended token of each
             place, by falling attention, then the second of each place, and so on
    Shapes:  last_query (B, H, N), frame_vectors (B, N, d), frame_similarity (B, N) -> anchor (B, K) int64
    Cost:    one query row at each boundary, 2 B H N d FLOPs, and the question's embedding once
    Differs: only the outline is published: segments by cosine, more for relevant ones, no place repeated, several
             layers. Thresholds, shares, layers and the order in a segment are this project's. A frame that has lost
             all tokens no longer parts its neighbours.

    Args:
        boundaries: layers before which tokens go, ranked by the layer before, and the depth that they are counted on.
        tau: cosine of frames of one segment; above 1 each frame is one, at -1 the video is.
        balance: g, the part of the budget that follows relevance.
        temperature: t of the softmax over segments.
    Raises:
        ValueError: `boundaries` are not ascending within 1 .. depth - 1, `balance` is outside [0, 1], `temperature` is
            not above 0, or `count` is outside 1..N.
        MissingSignal: the host gave no `last_query`, no `frame_vectors` or no `frame_similarity`.
    """

    name = "adatp"
    stages = ("prefill",)
    kinds = frozenset({"last_query", "frame_vectors", "frame_similarity"})
    modality = "video"
    text_guided = True
    paper = "Sun et al., EMNLP Findings 2025, https://arxiv.org/abs/2505.20100"
    fidelity = "reconstruction"

    boundaries: tuple[tuple[int, ...], int] = ((8, 16, 24), 32)
    tau: float = 0.9
    balance: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        layers, depth = self.boundaries
        if not layers or layers != tuple(sorted(set(layers))) or layers[0] < 1 or layers[-1] >= depth:
            raise ValueError(f"adatp: boundaries {layers} are not ascending within 1..{depth - 1}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"adatp: balance {self.balance} is outside [0, 1]")
        if self.temperature <= 0:
            raise ValueError(f"adatp: temperature {self.temperature} is not above 0")

    def resolved(self, depth: int) -> list[int]:
        """The boundaries on a model of this depth; those that fall together are one."""
        layers, of = self.boundaries
        return sorted({scaled((layer, of), depth) for layer in layers})

    def signals(self, depth: int) -> frozenset[Signal]:
        attention = {Signal("last_query", layer - 1) for layer in self.resolved(depth)}
        return frozenset(attention | {Signal("frame_vectors"), Signal("frame_similarity")})

    def signals_at(self, site_layer: int, depth: int) -> frozenset[Signal]:
        return super().signals_at(site_layer - 1, depth)

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        layers = self.resolved(depth)
        return falling(n, layers, geometric(n, count, len(layers)))

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        score = tokens.signals["last_query"].float().mean(dim=1)
        area = tokens.grid[1] * tokens.grid[2]
        frame, place = tokens.position.clamp(min=0) // area, tokens.position.clamp(min=0) % area
        present, vector, relevance = frames(tokens, frame)
        segment = segments(vector, present, self.tau)  # (B, T)
        budget = budgets(segment, present, relevance, self.balance, self.temperature)
        segment = segment.gather(1, frame)  # (B, N)
        room = torch.zeros_like(budget, dtype=torch.long).scatter_add_(1, segment, torch.ones_like(segment))
        budget = one_each(budget, room, count)
        turn = rank_within(score, segment * area + place)  # the best of a place comes in turn 0
        order = rank(score) + turn * tokens.n  # a number of its own for each token
        return selection(rank_within(-order, segment) < budget.gather(1, segment))


def frames(tokens: Tokens, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each frame (B, T): whether a token of it is left, its vector (B, T, d) and its cosine with the question."""
    b, t = frame.shape[0], tokens.grid[0]
    vector, relevance = tokens.signals["frame_vectors"].float(), tokens.signals["frame_similarity"].float()
    number = torch.zeros(b, t, device=frame.device).scatter_add_(1, frame, torch.ones_like(relevance))
    at = frame.unsqueeze(-1).expand_as(vector)
    mean = vector.new_zeros(b, t, vector.shape[-1]).scatter_add_(1, at, vector) / number.clamp(min=1).unsqueeze(-1)
    return number > 0, mean, torch.zeros_like(number).scatter_add_(1, frame, relevance) / number.clamp(min=1)


def segments(vector: Tensor, present: Tensor, tau: float) -> Tensor:
    """The segment of each frame (B, T), from 0; a frame that is not present goes with the one before."""
    index = torch.arange(present.shape[1], device=present.device).expand_as(present)
    last = index.masked_fill(~present, -1).cummax(dim=-1).values
    before = torch.cat([last.new_full((len(last), 1), -1), last[:, :-1]], dim=-1)  # the present frame before this one
    previous = vector.gather(1, before.clamp(min=0).unsqueeze(-1).expand_as(vector))
    parts = present & (before >= 0) & (cosine_to(vector, previous) < tau)
    return parts.long().cumsum(dim=-1)


def budgets(segment: Tensor, present: Tensor, relevance: Tensor, balance: float, temperature: float) -> Tensor:
    """Each segment's share of the tokens (B, T), of which those of segments that there are add up to 1."""
    zero = torch.zeros_like(relevance)
    length = zero.scatter_add(1, segment, present.float())
    mean = zero.scatter_add(1, segment, relevance * present) / length.clamp(min=1)
    weight = (mean / temperature).masked_fill(length == 0, -torch.inf).softmax(dim=-1)
    return (1 - balance) * length / length.sum(dim=-1, keepdim=True) + balance * weight

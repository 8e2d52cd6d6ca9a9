"""TopV: keep the tokens that a layer's output could best be transported from, and every fourth of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import rank, selection
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal
from foveate.compressors.transport import balanced, ranged, targets_alone


@register
@dataclass(frozen=True)
class TopV(Reducer):
    """Rank tokens by what they contribute to a plan that carries a layer's input to what its MLP reads.

    Paper:   Yang et al., CVPR 2025, https://arxiv.org/abs/2503.18278
    Code:    none published.
    Formula: C = alpha F + beta S + gamma E; F[i, j] = ||s[i] - t[j]||^2, S = 1 - exp(-distance^2 / (2 sigma^2)) on the
             grid, E[i] = distance from the centre, each brought to 0 .. 1; P = a transport plan for C / epsilon;
             I[i] = sum_j P[i, j]: the largest stay, and of the others in order every `stride`-th
    Shapes:  hidden_states, post_norm (B, N, D) -> anchor (B, K) int64
    Cost:    2 B N^2 D FLOPs; both signals are there when the layer has run, and no attention is read
    Differs: the paper does not print its importance. That of a plan with equal shares on both sides hardly depends on
             the cost, so targets alone are served by default ("targets"); "balanced" is the plan with both. Tokens of
             different frames count as far apart. Constants but the layer are not the authors'.

    Args:
        layer: whose input and whose MLP's input are compared, as (number, depth of the paper's model): (2, 32). Tokens
            are gone before the next one.
        transport: "targets" or "balanced" (three rounds).
        alpha: weight of F.
        beta: weight of S.
        gamma: weight of E.
        sigma: of S, in tokens.
        epsilon: the larger, the less the cost decides.
        stride: one of so many of the tokens not kept by rank is kept all the same.
    Raises:
        ValueError: `layer` is outside 1 .. depth - 2, `transport` is unknown, `sigma` or `epsilon` is not above 0,
            `stride` is below 2, or `count` is outside 1..N.
        MissingSignal: the host gave no `hidden_states` or no `post_norm`.
    """

    name = "topv"
    stages = ("prefill",)
    kinds = frozenset({"hidden_states", "post_norm"})
    paper = "Yang et al., CVPR 2025, https://arxiv.org/abs/2503.18278"
    fidelity = "reconstruction"

    layer: tuple[int, int] = (2, 32)
    transport: str = "targets"
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.01
    sigma: float = 10.0
    epsilon: float = 0.1
    stride: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1] - 1:
            raise ValueError(f"topv: layer {self.layer[0]} is outside 1..{self.layer[1] - 2}")
        if self.transport not in ("targets", "balanced"):
            raise ValueError(f"topv: transport {self.transport!r} is neither 'targets' nor 'balanced'")
        if min(self.sigma, self.epsilon) <= 0:
            raise ValueError(f"topv: sigma {self.sigma} or epsilon {self.epsilon} is not above 0")
        if self.stride < 2:
            raise ValueError(f"topv: stride {self.stride} is below 2")

    def resolved(self, depth: int) -> int:
        """The layer that is read, on a model of this depth; the next one must exist."""
        return min(scaled(self.layer, depth), depth - 2)

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal(kind, self.resolved(depth)) for kind in ("hidden_states", "post_norm"))

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(self.resolved(depth) + 1, count)]

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        best, more = split(tokens.n, count, self.stride)
        kept = rank(self.importance(tokens)) < best
        number = (~kept).cumsum(dim=-1) - 1  # each lost token's place among them
        again = torch.zeros(tokens.n, dtype=torch.bool, device=kept.device)
        again[torch.tensor(spread(tokens.n - best, more, self.stride if best else 0), dtype=torch.long)] = True
        return selection(kept | (~kept & again[number.clamp(min=0)]))

    def importance(self, tokens: Tokens) -> Tensor:
        """(B, N) float32: how much of the targets comes from each token."""
        source, target = (tokens.signals[kind].float() for kind in ("hidden_states", "post_norm"))
        squares = [(x**2).sum(dim=-1) for x in (source, target)]
        far = squares[0].unsqueeze(2) + squares[1].unsqueeze(1) - 2 * source @ target.transpose(1, 2)
        apart, outside = geometry(tokens, self.sigma)
        cost = self.alpha * ranged(far) + self.beta * ranged(apart) + self.gamma * ranged(outside).unsqueeze(2)
        if self.transport == "targets":
            return targets_alone(cost, self.epsilon).sum(dim=2)
        return balanced(cost, self.epsilon, rounds=3).sum(dim=2)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * n * n * dim


def geometry(tokens: Tokens, sigma: float) -> tuple[Tensor, Tensor]:
    """How far apart tokens are (B, N, N), 1 = in different frames, and how far from the centre (B, N), in tokens.

    A token without a place stands at the centre of the first frame.
    """
    _, h, w = tokens.grid
    placed, middle = tokens.position >= 0, ((h - 1) / 2, (w - 1) / 2)
    y = torch.where(placed, (tokens.position % (h * w) // w).float(), middle[0])
    x = torch.where(placed, (tokens.position % w).float(), middle[1])
    frame = tokens.position.clamp(min=0) // (h * w)
    distance = (y.unsqueeze(2) - y.unsqueeze(1)) ** 2 + (x.unsqueeze(2) - x.unsqueeze(1)) ** 2
    apart = 1 - torch.exp(-distance / (2 * sigma**2))
    apart = apart.masked_fill(frame.unsqueeze(2) != frame.unsqueeze(1), 1)
    return apart, torch.sqrt((y - middle[0]) ** 2 + (x - middle[1]) ** 2)


def split(n: int, count: int, stride: int) -> tuple[int, int]:
    """How many of `count` are kept by rank, and how many of the n - best others at every `stride`-th place."""
    best = max(0, (count * stride - n) // (stride - 1))  # then best + ceil((n - best) / stride) is count, or just below
    while best < count and best + 1 + math.ceil((n - best - 1) / stride) <= count:
        best += 1
    return best, count - best


def spread(n: int, count: int, stride: int) -> list[int]:
    """`count` of n places at every `stride`-th; at equal distances where stride is 0."""
    return [i * stride if stride else i * n // count for i in range(count)]

"""GlimpsePrune: a learned token looks at the picture once behind the prompt; what its look does not find leaves."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import rank, selection
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import attended, linear_flops
from foveate.compressors.registry import register
from foveate.compressors.signals import LEVELS, Signal
from foveate.compressors.tokens import Grid

HEADS = 4
"""Attention heads of each layer of the predictor."""

EPS = 1e-6


class Layer(nn.Module):
    """Tokens of one picture attend to each other by their states, what the tower saw there, and their places.

    Args:
        hidden: h, features of a token's state; queries and keys have 3 h, its state beside the 2 h of the tower's.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(hidden, eps=EPS) for _ in range(2))
        self.q, self.k = (nn.Linear(3 * hidden, 3 * hidden, bias=False) for _ in range(2))
        self.v, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(hidden, 2 * hidden) for _ in range(2))
        self.down = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Tensor, condition: Tensor, angle: Tensor, seen: Tensor) -> Tensor:
        """(B, N, h), (B, N, 2 h), (B, N, 3 h / 8) and (B, N, N) bool, who sees whom -> (B, N, h)."""
        y = self.norms[0](x)
        both = torch.cat([y, condition], dim=-1)
        q, k = (turned(part(both), angle) for part in (self.q, self.k))
        x = x + self.out(attended(q, k, self.v(y), HEADS, seen.unsqueeze(1)))
        y = self.norms[1](x)
        return x + self.down(silu(self.gate(y)) * self.up(y))

    def flops(self, n: int) -> int:
        """Of n tokens."""
        parts = (self.q, self.k, self.v, self.out, self.gate, self.up, self.down)
        products = 2 * n * n * (self.q.in_features + self.v.in_features)
        return sum(linear_flops(part, n) for part in parts) + products


class Glimpse(nn.Module):
    """The token, layer by layer of the decoder, and the predictor that reads its attention.

    Args:
        widths: of the host.
        hidden: h, features of a token in the predictor.
    """

    def __init__(self, widths: Widths, hidden: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(widths.decoder_depth, widths.decoder) * 0.02)
        self.into, self.norm = nn.Linear(widths.decoder, widths.decoder), nn.RMSNorm(widths.decoder, eps=EPS)
        self.enter, self.leave = nn.Linear(widths.heads, hidden), nn.Linear(hidden, 1)
        self.conditions = nn.ModuleList(nn.Linear(widths.visual, 2 * hidden) for _ in range(LEVELS))
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(LEVELS))
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def vectors(self, layers: int) -> Tensor:
        """(layers, D) what the token is, and what is added to it before each layer behind the first."""
        return self.norm(self.into(self.token[:layers]))

    def forward(self, attention: Tensor, levels: Tensor, position: Tensor, grid: Grid) -> Tensor:
        """Logits (B, N) that the answer stands at a token, from log attention (B, H, N) and states (B, 4, N, C)."""
        _, height, width = grid
        frame = position.div(height * width, rounding_mode="floor")  # without a place: a frame of its own, -1
        seen = frame.unsqueeze(1) == frame.unsqueeze(2)
        angle = angles(position % (height * width), width, 3 * self.enter.out_features // HEADS).to(attention)
        x = self.enter(attention.mT)
        for layer, condition, level in zip(self.layers, self.conditions, levels.unbind(1), strict=True):
            x = layer(x, condition(level), angle, seen)
        return self.leave(x).squeeze(-1)

    def flops(self, n: int) -> int:
        """Of the predictor on n tokens."""
        ends = linear_flops(self.enter, n) + linear_flops(self.leave, n)
        return ends + sum(
            linear_flops(c, n) + layer.flops(n) for c, layer in zip(self.conditions, self.layers, strict=True)
        )


def angles(place: Tensor, width: int, features: int) -> Tensor:
    """(B, N, features / 2) float32: by row, then by column, p 10000^(-i / (features / 4)) for i of a quarter each."""
    speed = 10000 ** (-torch.arange(features // 4, device=place.device) / (features // 4))
    return torch.cat([(place // width)[..., None] * speed, (place % width)[..., None] * speed], dim=-1)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Features (B, N, heads e) with feature i of each head rotated against feature i + e / 2 by angle (B, N, e / 2)."""
    first, second = x.unflatten(-1, (HEADS, 2, -1)).unbind(-2)
    cos, sin = angle.cos().unsqueeze(2), angle.sin().unsqueeze(2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(2)


@register
@dataclass(frozen=True)
class GlimpsePrune(Learned, Reducer):
    """Predict from one look of a learned token, and from what the tower saw, which tokens the answer stands on.

    Paper:   Zeng et al., 2025, https://arxiv.org/abs/2508.01548
    Code:    https://github.com/HVision-NKU/GlimpsePrune
    Formula: g[l] = RMSNorm(W e[l]); the token g[0] stands behind the prompt, g[l] is added to it before layer l; z =
             the predictor's logits from log attention of its row in layer P, all heads, and states of four blocks of
             the tower, the last first; tokens with sigmoid(z) > threshold stay, at most `count`, at least `least`
    Shapes:  glimpse_query (B, H, N), tower_levels (B, 4, N, C) -> anchor (B, K)
    Cost:    one more token in layers 0 .. P, and the predictor: 2 N h H + sum over 4 layers (4 N h C + 52 N h^2 +
             8 N^2 h) + 2 N h with h = 256
    Differs: the code decides by `threshold` 0.5; here `count` alone decides unless one is given. It reads raw logits on
             Qwen2.5-VL and log attention on LLaVA; here always the latter. Patches that a connector merges lie side by
             side, the code takes their mean. h is a quarter of a small decoder's width. No corners are protected.
             Layer P ends for the token at its attention.

    Args:
        layer: P, as (number, depth of the paper's model): (21, 32), and (18, 28) on Qwen2.5-VL. Tokens leave behind it,
            and all caches before it.
        threshold: probability above which a token stays; 0 = every one may.
        least: tokens that stay in any case.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `layer` is outside 1 .. depth - 2, `threshold` is outside [0, 1), `least` is below 1, or `count` is
            outside 1..N.
        MissingSignal: the host gave no `glimpse_query` or no `tower_levels`.
    """

    name = "glimpse_prune"
    stages = ("prefill",)
    kinds = frozenset({"glimpse_query", "tower_levels"})
    text_guided = True
    adaptive = True
    forgets = True
    rate = 1e-4
    further = ("glimpse",)
    paper = "Zeng et al., 2025, https://arxiv.org/abs/2508.01548"
    fidelity = "reference"

    layer: tuple[int, int] = (21, 32)
    threshold: float = 0.0
    least: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1] - 1:
            raise ValueError(f"glimpse_prune: layer {self.layer[0]} is outside 1..{self.layer[1] - 2}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"glimpse_prune: threshold {self.threshold} is outside [0, 1)")
        if self.least < 1:
            raise ValueError(f"glimpse_prune: least {self.least} is below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Glimpse(widths, min(256, 16 * max(1, widths.decoder // 64)))

    def resolved(self, depth: int) -> int:
        """The layer that the token looks in, on a model of this depth; the next one must exist."""
        return min(scaled(self.layer, depth), depth - 2)

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("glimpse_query", self.resolved(depth)), Signal("tower_levels")})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(self.resolved(depth) + 1, count)]

    def glimpse(self, layers: int) -> Tensor:
        """(layers, D) the token, and what is added to it before each layer behind the first."""
        return self.loaded.vectors(layers)

    def logits(self, tokens: Tokens) -> Tensor:
        """(B, N) float32: how surely the answer stands at a token."""
        attention, levels = (tokens.signals[kind].float() for kind in ("glimpse_query", "tower_levels"))
        return self.run(attention, levels, tokens.position, tokens.grid)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        return chosen(self.logits(tokens), count, self.threshold, self.least)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(n)


def chosen(logits: Tensor, count: int, threshold: float, least: int) -> Reduction:
    """The tokens whose probability is above a threshold: the best `count` of them, or the best `least` of all."""
    bar = log(threshold / (1 - threshold)) if threshold else -inf
    number = (logits > bar).sum(dim=-1, keepdim=True).clamp(min(least, count), count)
    return selection(rank(logits) < number)

"""VidCom2: frames unlike the rest of the video get more tokens, and in a frame those unlike video and frame stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import rank, selection
from foveate.compressors.frames_apart import frames_of
from foveate.compressors.matching import rounded
from foveate.compressors.registry import register

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)


@register
@dataclass(frozen=True)
class VidCom2(Reducer):
    """Likeness to the video's and to the frame's mean by Gaussians on steady channels; the least alike tokens stay.

    Paper:   Liu et al., EMNLP 2025, https://arxiv.org/abs/2505.14454
    Code:    https://github.com/xuyang-liu16/VidCom2, token_compressor/vidcom2/vidcom2.py
    Formula: x: tokens on the half of the channels with the least variance, unit length; g, f[t]: their means over video
             and frame; S(x, c) = sum_a exp(-|x - c|^2 / 2a), a in 1/8, 1/4, 1/2, 1, 2; z[t] = -mean_p S(x[t, p], g);
             frame t keeps max(1, round(n min(1, R (1 + w - mean w)))), w = softmax((z - max z) / 0.01), R the ratio;
             in it the smallest S(x, g) + S(x, f[t])
    Shapes:  x (B, T n, D) -> anchor (B, K) int64
    Cost:    no matrix product: two distances a token.
    Differs: rounding and clipping make the code's total stray from the ratio. Here the count is met: what is missing
             are the smallest sums left over, what is too much goes by the largest sums, each frame's last token apart.

    Args:
        temperature: of the softmax over frames.
    Raises:
        ValueError: tokens are not a whole grid, `temperature` is not above 0, or `count` is outside 1..N.
    """

    name = "vidcom2"
    stages = ("projector",)
    modality = "video"
    requires_grid = True
    paper = "Liu et al., EMNLP 2025, https://arxiv.org/abs/2505.14454"
    fidelity = "reference"

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"vidcom2: temperature {self.temperature} is not above 0")

    def reachable(self, grid: Grid) -> Sequence[int]:
        return range(grid[0], grid[0] * grid[1] * grid[2] + 1)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        x = steady(frames_of(self.name, tokens).float())
        to_video = likeness(x, x.mean(dim=(1, 2), keepdim=True))
        both = rounded(to_video + likeness(x, x.mean(dim=2, keepdim=True)))  # (B, T, n)
        unique = -to_video.mean(dim=-1)
        each = x.shape[2]
        budget = (ratios(unique, count / tokens.n, self.temperature) * each).round().clamp(min=1)
        place = rank(-both)
        tier = (place < budget.unsqueeze(-1)).int() + (place == 0).int()  # a frame's best token is the last to go
        return selection(rank(-both.flatten(1), tier.flatten(1)) < count)


def steady(x: Tensor) -> Tensor:
    """x (B, T, n, D) on the half of its channels with the least variance over all tokens, made unit length."""
    every = x.flatten(1, 2)
    variance = rounded(
        ((every - every.mean(dim=1, keepdim=True)) ** 2).mean(dim=1)
    )  # (B, D); many times as fast as var
    order = variance.argsort(dim=-1, stable=True)[:, : max(1, x.shape[-1] // 2)].sort(dim=-1).values
    index = order.view(len(x), 1, 1, -1).expand(-1, *x.shape[1:3], -1)
    return normalize(x.gather(-1, index), dim=-1)


def likeness(x: Tensor, centre: Tensor) -> Tensor:
    """(B, T, n) sum of Gaussians of several widths at the distance of x (B, T, n, d) from centres that fit it."""
    square = ((x - centre) ** 2).sum(dim=-1)
    return sum(torch.exp(-square / (2 * width)) for width in WIDTHS)


def ratios(unique: Tensor, keep: float, temperature: float) -> Tensor:
    """The share of its tokens that each frame keeps: (B, T), from how unique it is (B, T) and the share of all."""
    top = unique.amax(dim=-1, keepdim=True)
    weight = ((unique - top) / temperature).softmax(dim=-1)
    return (keep * (1 + weight - weight.mean(dim=-1, keepdim=True))).clamp(max=1)

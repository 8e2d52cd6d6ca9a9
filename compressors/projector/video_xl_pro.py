"""Video-XL-Pro's synthesizer: four frames become one by attention in space and time and strided convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Attention, Mlp, inner, linear_flops
from foveate.compressors.planes import check_whole, raster
from foveate.compressors.registry import register

GROUP = 4
"""Frames that are read together."""

SIDE = 2
"""Of the squares of projected tokens that become their mean."""

TABLES = 0.02
"""Standard deviation of the tables of distances in time at first."""


def normed(width: int) -> nn.GroupNorm:
    """A norm over 32 groups of channels, or over as many as divide them."""
    return nn.GroupNorm(gcd(32, width), width)


class InTime(nn.Module):
    """Attention of each place to itself in the frames of its group, which knows how far apart they are.

    Nothing at first. Queries, keys and values start at zero as published; the tables do not, so all of it can learn.

    Args:
        width: h.
        frames: of a group.
    """

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.norm = normed(width)
        self.parts = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(2 * frames - 1, width) * TABLES) for name in ("k", "v")}
        )
        for part in self.parts.values():
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(P, F, h) of each place -> what is added to it."""
        line = torch.arange(x.shape[1], device=x.device)
        apart = line - line[:, None] + len(line) - 1  # (F, F) of queries and keys
        y = self.norm(x.mT).mT
        k, v = (self.parts[name](y).unsqueeze(1) + self.tables[name][apart] for name in ("k", "v"))  # (P, F, F, h)
        logits = (self.parts["q"](y).unsqueeze(2) * k).sum(-1).float() * x.shape[2] ** -0.5
        return self.parts["out"]((logits.softmax(-1).to(v.dtype).unsqueeze(-1) * v).sum(2))

    def flops(self, n: int) -> int:
        """Of n tokens."""
        return sum(linear_flops(part, n) for part in self.parts.values())


class Halving(nn.Module):
    """Attention in each frame, attention in time, then a convolution that leaves every second frame.

    At first the mean of two frames.

    Args:
        width: h.
        frames: that come.
    """

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.norm, self.space = normed(width), Attention(width, heads=1)
        self.time = InTime(width, frames)
        self.conv = nn.Conv3d(width, width, 3, stride=(2, 1, 1))
        for part in (self.space.out, self.conv):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        with torch.no_grad():
            self.conv.weight[:, :, 1:, 1, 1] = torch.eye(width).unsqueeze(-1) / 2

    def forward(self, x: Tensor) -> Tensor:
        """(G, F, H, W, h) -> (G, F / 2, H, W, h)."""
        _, frames, height, width, _ = x.shape
        y = self.norm(x.flatten(0, 1).permute(0, 3, 1, 2)).flatten(2).mT  # (G F, H W, h)
        x = x + self.space(y, y, y).view_as(x)
        places = x.flatten(2, 3).transpose(1, 2).flatten(0, 1)  # (G H W, F, h)
        x = x + self.time(places).unflatten(0, (-1, height * width)).transpose(1, 2).view_as(x)
        around = pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 1, 0), mode="replicate")  # one frame in front
        return self.conv(around).permute(0, 2, 3, 4, 1)

    def flops(self, frames: int, places: int) -> int:
        """Of so many frames in all."""
        conv = 2 * (frames // 2) * places * self.conv.weight.numel()
        return frames * self.space.flops(places, places) + self.time.flops(frames * places) + conv


class Network(nn.Module):
    """The synthesizer, around it matrices to a smaller width and back, then the projector and means of squares.

    At first: the projector on the mean of each group. Where the width is the tokens' own there are no such matrices;
    else what the synthesizer says comes on top of the mean.

    Args:
        width: C of the tokens that come.
        hidden: h.
        out: D of those that leave.
        projector: of the host, to start from.
    """

    def __init__(self, width: int, hidden: int, out: int, projector: Projector) -> None:
        super().__init__()
        self.frame = nn.Parameter(torch.zeros(GROUP, hidden))
        self.halvings = nn.ModuleList(Halving(hidden, frames) for frames in (4, 2))
        self.down = self.up = None
        if hidden != width:
            self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        self.mlp = Mlp(width, out, projector)

    def synthesized(self, x: Tensor, halvings: int) -> Tensor:
        """(B, T, H, W, C) -> (B, t, H, W, C), the last frame again until groups are full."""
        b, frames = x.shape[:2]
        left = -(-frames // 2**halvings)  # of the last group too, only what shows a frame
        line = torch.arange(-(-frames // GROUP) * GROUP, device=x.device).clamp(max=frames - 1)
        groups = x[:, line].unflatten(1, (-1, GROUP)).flatten(0, 1)
        y = (groups if self.down is None else self.down(groups)) + self.frame[:, None, None]
        for halving in self.halvings[:halvings]:
            y = halving(y)
        y = y.unflatten(0, (b, -1)).flatten(1, 2)[:, :left]
        if self.up is None:
            return y
        plain = groups.unflatten(1, (-1, 2**halvings)).mean(dim=2)
        return plain.unflatten(0, (b, -1)).flatten(1, 2)[:, :left] + self.up(y)

    def forward(self, x: Tensor, halvings: int) -> Tensor:
        """(B, T, H, W, C) -> (B t, D, h, w)."""
        maps = self.mlp(self.synthesized(x, halvings)).flatten(0, 1).permute(0, 3, 1, 2)
        window = [min(SIDE, side) for side in maps.shape[2:]]
        return avg_pool2d(maps.float(), window, ceil_mode=True).to(maps)

    def flops(self, grid: Grid, halvings: int) -> int:
        """Of one clip."""
        t, places = -(-grid[0] // GROUP) * GROUP, grid[1] * grid[2]
        left = -(-grid[0] // 2**halvings) * places
        ends = 0 if self.up is None else linear_flops(self.down, t * places) + linear_flops(self.up, left)
        inside = sum(part.flops(t >> step, places) for step, part in enumerate(self.halvings[:halvings]))
        return ends + inside + self.mlp.flops(left)


@register
@dataclass(frozen=True)
class VideoXLPro(Learned, Resampler):
    """Attention in each frame, along time at each place, and a convolution of stride 2 in time, twice; MLP; means.

    Paper:   Liu et al., 2025, https://arxiv.org/abs/2503.18478
    Code:    https://github.com/VectorSpaceLab/Video-XL, Video-XL-Pro/videoxlpro/videoxlpro/model/sae.py
    Formula: groups of 4 frames with e[frame] added; twice x += O attention(GN(x)) in a frame, x += O' a (v + r[j - i])
             at a place with a = softmax(q (k + r'[j - i]) / sqrt(h)), x = conv 3 x 3 x 3 of stride (2, 1, 1), the first
             frame again in front and the border again around; MLP; means of 2 x 2
    Shapes:  x (B, T H W, C) -> (B, ceil(T / 4) ceil(H / 2) ceil(W / 2), D), raster order
    Cost:    for n tokens in, m out of the first halvings: n (2 C h + 16 h^2 + 4 H W h) + 27 n h^2, half of the latter
             three in the second; m (2 C h + 2 C D + 2 D^2)
    Differs: the code resizes frames to 24 x 24, works at the width of the tower, and re-views frames so that channels
             and time mix in memory; it fills the last group with frames drawn at random. Here frames keep their grid,
             h is a quarter of C around which the group's mean goes, groups are what they say and the last frame is
             repeated. What the paper pre-trains by masked reconstruction, the host's own features teach here. It starts
             as means before the host's own projector. Two frames to one, by the first step alone, is a second count.

    Args:
        halvings: how often frames are halved, for each count.
        hidden: h; None = a quarter of C, which small models afford (where C is above 1280: of 1024). C is as published.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `halvings` has others than 1 and 2, `hidden` is below 1, tokens are not a whole grid, or `count` is
            not that of a halving.
    """

    name = "video_xl_pro"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    rate = 5e-4
    paper = "Liu et al., 2025, https://arxiv.org/abs/2503.18478"
    fidelity = "paper"

    halvings: tuple[int, ...] = (1, 2)
    hidden: int | None = None

    def __post_init__(self) -> None:
        if not self.halvings or not {*self.halvings} <= {1, 2}:
            raise ValueError(f"video_xl_pro: halvings {self.halvings} must be of 1 and 2")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"video_xl_pro: hidden {self.hidden} is below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        hidden = self.hidden or max(1, inner(widths.visual) // 4)
        return Network(widths.visual, hidden, widths.decoder, projector)

    def by_count(self, grid: Grid) -> dict[int, int]:
        """How often frames are halved for each count; both ways of a still picture are the whole one."""
        places = -(-grid[1] // SIDE) * -(-grid[2] // SIDE)
        return {-(-grid[0] // 2**halvings) * places: halvings for halvings in sorted(self.halvings)}

    def reachable(self, grid: Grid) -> Sequence[int]:
        return sorted(self.by_count(grid))

    def training_counts(self, grid: Grid) -> Sequence[int]:
        return self.reachable(grid)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        return raster(self.run(tokens.x.unflatten(1, tokens.grid), self.by_count(tokens.grid)[count]), tokens)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        return self.loaded.flops(grid, self.by_count(grid)[count])

"""STORM: a state-space mixer sweeps all frames both ways, then frames and places are pooled, and frames skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, pad, silu, softplus

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import inner, linear_flops
from foveate.compressors.planes import check_whole, raster
from foveate.compressors.registry import register
from foveate.compressors.scans import scanned

STATE, REACH = 16, 4
"""Numbers that each channel remembers, and tokens that its convolution sees."""

STEPS = (1e-3, 1e-1)
"""Range of the steps that a fresh scan takes."""

Setting = tuple[int, int, int]
"""(frames that are pooled, side of the squares that are, every how manieth frame stays)."""


class Scan(nn.Module):
    """One sweep of a line of tokens: neighbours behind, then a state whose pace and contents the token itself decides.

    Args:
        width: E.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv1d(width, width, REACH, groups=width)
        self.rank = -(-width // 16)
        self.read = nn.Linear(width, self.rank + 2 * STATE, bias=False)
        self.pace = nn.Linear(self.rank, width)
        self.speed = nn.Parameter(torch.arange(1.0, STATE + 1).log().repeat(width, 1))
        self.straight = nn.Parameter(torch.ones(width))
        low, high = STEPS
        step = (torch.rand(width) * (log(high) - log(low)) + log(low)).exp()
        with torch.no_grad():
            nn.init.uniform_(self.pace.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.pace.bias.copy_(step + (-torch.expm1(-step)).log())  # softplus of it is the step

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) -> (B, L, E)."""
        x = silu(self.near(pad(x.mT, (REACH - 1, 0)))).mT
        pace, into, out = self.read(x).split([self.rank, STATE, STATE], dim=-1)
        y = scanned(softplus(self.pace(pace)), -self.speed.float().exp(), into, out, x)
        return y.to(x.dtype) + self.straight * x

    def flops(self, n: int) -> int:
        """Of n tokens: the products; what the state goes through is none."""
        width = self.straight.numel()
        return 2 * n * width * (REACH + STATE) + linear_flops(self.read, n) + linear_flops(self.pace, n)


class Mixer(nn.Module):
    """Adds to each token what a sweep forwards and one backwards tell of it; nothing at first.

    Args:
        width: C of the tokens.
        inside: E, features in a sweep.
    """

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, 2 * inside, bias=False)
        self.ahead, self.back = Scan(inside), Scan(inside)
        self.leave = nn.Linear(inside, width, bias=False)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        y, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        both = self.ahead(y) + self.back(y.flip(1)).flip(1)
        return x + self.leave(both * silu(gate))

    def flops(self, n: int) -> int:
        """Of n tokens."""
        ends = linear_flops(self.enter, n) + linear_flops(self.leave, n)
        return ends + self.ahead.flops(n) + self.back.flops(n)


class Network(nn.Module):
    """Mixers; one network for all settings.

    Args:
        width: C of the tokens.
        depth: how many.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(Mixer(width, inner(width)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C), row by row of each frame -> (B, L, C)."""
        for mixer in self.mixers:
            x = mixer(x)
        return x

    def flops(self, n: int) -> int:
        """Of n tokens."""
        return sum(mixer.flops(n) for mixer in self.mixers)


@register
@dataclass(frozen=True)
class Storm(Learned, Resampler):
    """Two-way selective scans over all tokens of a video, then means of frames and squares, and every s-th of those.

    Paper:   Jiang et al., 2025, https://arxiv.org/abs/2503.04130
    Code:    none found.
    Formula: L times x += M (scan(u) + back(scan'(back(u)))) silu(z) with [u; z] = E LN(x), rows left to right, then the
             next row, then the next frame; scan: u = silu(conv(u)), h[t] = exp(d[t] A) h[t - 1] + d[t] u[t] b[t], y[t]
             = h[t] c[t] + D u[t], with d, b, c made of u[t]; then means of k frames and of a x a places, of these
             frames 0, s, 2 s ...
    Shapes:  x (B, T H W, C) -> (B, t h w, C) before the projector, raster order
    Cost:    L n (6 C E + 208 E + E^2 / 2) for n tokens; E = C up to 1280, else 1024. What the 16 E numbers of each
             state go through is no product of matrices
    Differs: the paper has a downsampling layer behind the tower, and the projector is trained; here all learn but the
             tower, and the host's own projector follows. Depth, width, state and convolution are not told: 2, C, 16
             and 4 are this project's. The paper trains one model for each way to pool and skips frames at test alone;
             here one network is trained for all. Of ways to the same count that with the smallest squares is taken, of
             these the one that skips least, as the paper finds that pooling frames costs least. The last frames and
             places are pooled with what there is.

    Args:
        frames: values of k.
        sides: values of a; 2 leaves a quarter of a frame's tokens.
        skips: values of s.
        depth: L, mixers.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `frames`, `sides` or `skips` are empty or have one below 1, `depth` is below 1, tokens are not a
            whole grid, or `count` is not that of a setting.
    """

    name = "storm"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "before"
    rate = 5e-4
    paper = "Jiang et al., 2025, https://arxiv.org/abs/2503.04130"
    fidelity = "reconstruction"

    frames: tuple[int, ...] = (1, 2, 4)
    sides: tuple[int, ...] = (1, 2)
    skips: tuple[int, ...] = (1, 2)
    depth: int = 2

    def __post_init__(self) -> None:
        for name in ("frames", "sides", "skips"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"storm: {name} {getattr(self, name)} must be 1 or more")
        if self.depth < 1:
            raise ValueError(f"storm: depth {self.depth} is below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual, self.depth)

    def by_count(self, grid: Grid) -> dict[int, Setting]:
        """The setting that gives each count below that of the grid."""
        found: dict[int, Setting] = {}
        for side, skip, frames in product(*map(sorted, (self.sides, self.skips, self.frames))):
            t, h, w = cells(grid, (frames, side, skip))
            if t * h * w < grid[0] * grid[1] * grid[2]:
                found.setdefault(t * h * w, (frames, side, skip))
        return found

    def reachable(self, grid: Grid) -> Sequence[int]:
        return sorted(self.by_count(grid))

    def training_counts(self, grid: Grid) -> Sequence[int]:
        return self.reachable(grid)  # one network for all

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        setting = self.by_count(tokens.grid)[count]
        mixed = self.run(tokens.x).unflatten(1, tokens.grid).permute(0, 4, 1, 2, 3)
        maps = pooled(mixed, setting).transpose(1, 2).flatten(0, 1)
        return raster(maps, tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(n)


def cells(grid: Grid, setting: Setting) -> Grid:
    """The grid that a setting makes of a grid."""
    frames, side, skip = setting
    return -(-grid[0] // (frames * skip)), -(-grid[1] // side), -(-grid[2] // side)


def pooled(maps: Tensor, setting: Setting) -> Tensor:
    """(B, C, T, H, W) -> (B, C, t, h, w): means, then every s-th frame."""
    frames, side, skip = setting
    window = [min(pair) for pair in zip((frames, side, side), maps.shape[2:], strict=True)]
    means = avg_pool3d(maps.float(), window, ceil_mode=True)  # over the border: the mean of what is inside
    return means[:, :, ::skip].to(maps)

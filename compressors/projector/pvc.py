"""PVC: frames look back at the same place, and each block of patches becomes a token that knows its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.blocks import block_counts, block_of, shuffled, squares
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Attention, Mlp, attended, fits, heads_of, linear_flops
from foveate.compressors.planes import check_whole, raster
from foveate.compressors.projector.pixel_shuffle import spread
from foveate.compressors.registry import register

WAVES = 256
"""Features of a time before its network."""


def waves(frames: int, device: torch.device) -> Tensor:
    """(T, 256) sines and cosines of 1000 t with t = i / (T - 1), 0 of a single frame."""
    t = torch.arange(frames, dtype=torch.float64, device=device) / max(1, frames - 1)
    speed = 10000 ** (-torch.arange(WAVES // 2, dtype=torch.float64, device=device) / (WAVES // 2))
    angle = 1000 * t[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class Looking(nn.Module):
    """Attention of each place to itself in this frame and earlier ones, scaled and gated by time; nothing at first.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads_of(width))
        self.time = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, P, T, C) of each place, with times (B, T, C)."""
        gamma, beta, alpha = self.time(silu(time)).unsqueeze(1).chunk(3, dim=-1)
        y, part = (self.norm(x) * (1 + gamma) + beta).flatten(0, 1), self.attention
        seen = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool, device=x.device).tril()
        return x + alpha * part.out(attended(part.q(y), part.k(y), part.v(y), part.heads, seen)).view_as(x)

    def flops(self, frames: int, places: int) -> int:
        """Of so many places in as many frames."""
        return linear_flops(self.time, frames) + places * self.attention.flops(frames, frames)


class Network(nn.Module):
    """Times, attention across frames, then blocks of tokens scaled by time and projected, a first matrix for each side.

    At first: the projector on the mean of each block.

    Args:
        width: C of the tokens that come.
        out: D of those that leave, also in between.
        depth: of the attention.
        sides: of the blocks.
        projector: of the host, to start from.
    """

    def __init__(self, width: int, out: int, depth: int, sides: Sequence[int], projector: Projector) -> None:
        super().__init__()
        self.time = nn.ModuleList([nn.Linear(WAVES, width), nn.Linear(width, width)])
        self.looking = nn.ModuleList(Looking(width) for _ in range(depth))
        self.scaled = nn.ModuleDict({str(s): nn.Linear(width, 2 * s * s * width) for s in sides})
        self.first = nn.ModuleDict({str(s): nn.Linear(s * s * width, out) for s in sides})
        plain = Mlp(width, out, projector)
        self.second = plain.layers[1]
        for part in self.scaled.values():
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        if fits(plain.layers, projector):
            for side in sides:
                spread(plain.layers[0], self.first[str(side)], side * side)

    def forward(self, x: Tensor, side: int) -> Tensor:
        """(B, T, H, W, C) -> (B T, D, h, w)."""
        b, t, h, w, c = x.shape
        enter, leave = self.time
        time = leave(silu(enter(waves(t, x.device).to(x.dtype).expand(b, -1, -1))))
        x = x.flatten(2, 3).transpose(1, 2)
        for block in self.looking:
            x = block(x, time)
        maps = x.permute(0, 2, 3, 1).reshape(b * t, c, h, w)
        wide = shuffled(maps, (side, side)).permute(0, 2, 3, 1).unflatten(0, (b, t))
        gamma, beta = self.scaled[str(side)](silu(time))[:, :, None, None].chunk(2, dim=-1)
        y = self.second(gelu(self.first[str(side)](wide * (1 + gamma) + beta)))
        return y.flatten(0, 1).permute(0, 3, 1, 2)

    def flops(self, grid: Grid, count: int, side: int) -> int:
        """Of one clip that becomes so many tokens."""
        t, h, w = grid
        of_time = sum(linear_flops(layer, t) for layer in (*self.time, self.scaled[str(side)]))
        across = sum(block.flops(t, h * w) for block in self.looking)
        return of_time + across + linear_flops(self.first[str(side)], count) + linear_flops(self.second, count)


@register
@dataclass(frozen=True)
class Pvc(Learned, Resampler):
    """Causal attention along time at each place, then s x s tokens side by side, scaled by their time and projected.

    Paper:   Yang et al., CVPR 2025, https://arxiv.org/abs/2412.09613
    Code:    https://github.com/OpenGVLab/PVC, without its layers
    Formula: e = V2 silu(V1 waves(i / (T - 1))); x += a attention(LN(x) (1 + g) + b) over frames up to its own, with
             (g, b, a) = M silu(e); y = W2 gelu(W1 (u (1 + g') + b') + b1) + b2 with u an s x s block of tokens side by
             side and (g', b') = M' silu(e)
    Shapes:  x (B, T H W, C) -> (B, T ceil(H / s) ceil(W / s), D), raster order
    Cost:    depth times n (8 C^2 + 4 T C) and 2 k (s^2 C D + D^2) for n tokens in, k out; 2 T C^2 (3 depth + 2 s^2)
    Differs: the paper tells that attention along time is inside the tower, that times steer it, and 64 tokens a frame
             of 1024; its layers are not published and are this project's. Hosts' towers see one frame at a time, so all
             of it follows the tower. It starts as means before the host's own projector. A side has a first matrix and
             a scaling of its own, all else is shared. Pictures, which the paper repeats, are left to other methods.

    Args:
        sides: values of s that are trained together; 2, 4 and 8 leave 256, 64 and 16 of 1024 tokens.
        depth: blocks of attention.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `sides` is empty or one is below 1, `depth` is below 0, tokens are not a whole grid, or `count` is
            not that of a side.
    """

    name = "pvc"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    rate = 5e-4
    paper = "Yang et al., CVPR 2025, https://arxiv.org/abs/2412.09613"
    fidelity = "reconstruction"

    sides: tuple[int, ...] = (2, 4)
    depth: int = 4

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1 or self.depth < 0:
            raise ValueError(f"pvc: sides {self.sides} must be 1 or more, depth {self.depth} at least 0")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual, widths.decoder, self.depth, self.sides, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return block_counts(squares(self.sides), grid)

    def training_counts(self, grid: Grid) -> Sequence[int]:
        return self.reachable(grid)  # each has weights of its own

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        side, _ = block_of(squares(self.sides), tokens.n, count)
        return raster(self.run(tokens.x.unflatten(1, tokens.grid), side), tokens)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        return self.loaded.flops(grid, count, block_of(squares(self.sides), n, count)[0])

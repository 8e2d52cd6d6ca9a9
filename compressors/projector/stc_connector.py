"""STC connector (VideoLLaMA 2): convolutions in each frame around a strided one across space and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Bottleneck, Mlp, inner
from foveate.compressors.planes import check_whole, raster
from foveate.compressors.registry import register

Stride = tuple[int, int, int]
"""(frames, rows, columns) of tokens that become one."""


class Network(nn.Module):
    """Blocks, a strided convolution, blocks, MLP. Unless published, at first: means before the projector.

    Args:
        widths: of the host.
        hidden: channels of the blocks.
        depth: blocks before the convolution, and behind it.
        strides: each with a convolution of its own.
        published: SiLU where the authors have it, and their start.
        projector: of the host, to start from.
    """

    def __init__(
        self, widths: Widths, hidden: int, depth: int, strides: Sequence[Stride], published: bool, projector: Projector
    ) -> None:
        super().__init__()
        self.published = published
        before = [widths.visual, *[hidden] * depth]
        self.before = nn.ModuleList(Bottleneck(a, hidden, published) for a in before[:-1])
        self.samplers = nn.ModuleDict({name(s): nn.Conv3d(before[-1], before[-1], s, s) for s in strides})
        self.behind = nn.ModuleList(Bottleneck(before[-1], before[-1], published) for _ in range(depth))
        self.mlp = Mlp(before[-1], widths.decoder, () if published else projector)
        if not published:
            for sampler in self.samplers.values():
                average(sampler)

    def forward(self, x: Tensor, stride: Stride, padding: int) -> Tensor:
        """(B, T, H, W, C) -> (B t, D, h, w)."""
        x = framewise(self.before, x).permute(0, 4, 1, 2, 3)
        x = self.samplers[name(stride)](filled(x, stride, padding)).permute(0, 2, 3, 4, 1)
        x = framewise(self.behind, silu(x) if self.published else x)
        return self.mlp(x).flatten(0, 1).permute(0, 3, 1, 2)

    def flops(self, grid: Grid, made: Grid, stride: Stride) -> int:
        """Of one clip."""
        sampler, count = self.samplers[name(stride)], made[0] * made[1] * made[2]
        total = self.mlp.flops(count) + 2 * count * sampler.weight.numel()
        for blocks, (t, h, w) in ((self.before, grid), (self.behind, made)):
            total += t * sum(block.flops(h * w) for block in blocks)
        return total


@register
@dataclass(frozen=True)
class StcConnector(Learned, Resampler):
    """RegNet blocks in each frame, one convolution of a x b x c tokens that strides as far, RegNet blocks, an MLP.

    Paper:   Cheng et al. (VideoLLaMA 2), 2024, https://arxiv.org/abs/2406.07476
    Code:    https://github.com/DAMO-NLP-SG/VideoLLaMA2, videollama2/model/projector.py
    Formula: y = W2 s(W1 B(S(B(x))) + b1) + b2; S a convolution of kernel and stride (a, b, c), which makes of an axis
             of n places floor((n + 2 p - a) / a) + 1; B a chain of blocks x + LN(W g * a(LN(DW3x3(a(LN(V x)))))), a
             SiLU, g a gate on channels, frame by frame
    Shapes:  x (B, T H W, C) -> (B, t h w, D), raster order
    Cost:    depth blocks of 4 h^2 + 18 h on each token before S and each one behind it; 2 k (a b c h^2 + h D + D^2)
    Differs: published are stride (2, 2, 2), width D in the blocks, SiLU behind each and behind S, and a random start,
             trained with the decoder; by default blocks have the width of the tokens and close with their sum, S is a
             mean at first and what blocks add is nothing, so that it starts as means before the host's own projector.
             Each stride has a convolution of its own, all else is shared. Grids need not be square; an axis shorter
             than its stride is repeated to fill it.

    Args:
        strides: that are trained together; of two that give one count, the smaller.
        padding: p of axes that stride: 0 as in the authors' training (what fills no stride is lost), 1 as their older
            class pads, with zeros.
        depth: blocks before S, and behind it.
        hidden: channels of the blocks; None = see `networks.inner`, the decoder's where it is published.
        published: the authors' network and start.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `strides` are empty or have a side below 1, `padding` is neither 0 nor 1, `depth` is below 0,
            tokens are not a whole grid, or `count` is not that of a stride.
    """

    name = "stc_connector"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    rate = 5e-4
    paper = "Cheng et al., 2024, https://arxiv.org/abs/2406.07476"
    fidelity = "reference"

    strides: tuple[Stride, ...] = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (4, 2, 2))
    padding: int = 0
    depth: int = 4
    hidden: int | None = None
    published: bool = False

    def __post_init__(self) -> None:
        if not self.strides or min(map(min, self.strides)) < 1:
            raise ValueError(f"stc_connector: strides {self.strides} must have sides of 1 or more")
        if self.padding not in (0, 1) or self.depth < 0:
            raise ValueError(f"stc_connector: padding {self.padding} is neither 0 nor 1, or depth {self.depth} below 0")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        hidden = self.hidden or (widths.decoder if self.published else inner(widths.visual))
        return Network(widths, hidden, self.depth, self.strides, self.published, projector)

    def by_count(self, grid: Grid) -> dict[int, Stride]:
        """The stride that gives each count below that of the grid."""
        found: dict[int, Stride] = {}
        for stride in sorted(self.strides, key=lambda s: s[0] * s[1] * s[2]):
            t, h, w = cells(grid, stride, self.padding)
            if t * h * w < grid[0] * grid[1] * grid[2]:
                found.setdefault(t * h * w, stride)
        return found

    def reachable(self, grid: Grid) -> Sequence[int]:
        return sorted(self.by_count(grid))

    def training_counts(self, grid: Grid) -> Sequence[int]:
        return self.reachable(grid)  # each has weights of its own

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        stride = self.by_count(tokens.grid)[count]
        return raster(self.run(tokens.x.unflatten(1, tokens.grid), stride, self.padding), tokens)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        stride = self.by_count(grid)[count]
        return self.loaded.flops(grid, cells(grid, stride, self.padding), stride)


def name(stride: Stride) -> str:
    """How a network calls a stride."""
    return "x".join(map(str, stride))


def cells(grid: Grid, stride: Stride, padding: int) -> Grid:
    """The grid that a stride makes of a grid, after `filled`."""
    around = [2 * padding if side > 1 else 0 for side in stride]
    t, h, w = (max(n + more, side) // side for n, side, more in zip(grid, stride, around, strict=True))
    return t, h, w


def filled(x: Tensor, stride: Stride, padding: int) -> Tensor:
    """(B, C, T, H, W) with zeros around the axes that stride; where that is shorter than the stride, first its last
    entry again."""
    around = [padding if side > 1 else 0 for side in stride]
    for axis, (side, more) in enumerate(zip(stride, around, strict=True), 2):
        least = side - 2 * more
        if x.shape[axis] < least:
            x = x.index_select(axis, torch.arange(least, device=x.device).clamp(max=x.shape[axis] - 1))
    return pad(x, [more for more in reversed(around) for _ in range(2)])


def framewise(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """Blocks on (B, T, H, W, C), each frame by itself."""
    frames = x.flatten(0, 1).unsqueeze(1)
    for block in blocks:
        frames = block(frames)
    return frames.squeeze(1).unflatten(0, x.shape[:2])


@torch.no_grad()
def average(sampler: nn.Conv3d) -> None:
    """Makes a convolution the mean of its window, channel by channel."""
    eye = torch.eye(sampler.out_channels).view(*sampler.weight.shape[:2], 1, 1, 1)
    sampler.weight.copy_(eye.expand_as(sampler.weight) / sampler.weight[0, 0].numel())
    sampler.bias.zero_()

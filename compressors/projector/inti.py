"""InTI: two neighbouring frames become one, each place blended by weights that its surroundings decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.choosing import rank, rows, selection
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.matching import cosine_to, rounds
from foveate.compressors.networks import linear_flops
from foveate.compressors.planes import check_whole
from foveate.compressors.registry import register

KERNELS = (1, 3, 5)


class Network(nn.Module):
    """Weights of the two frames of a pair at each place. At first one half each.

    Args:
        width: C of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inside = max(1, width // 8)
        self.down = nn.Linear(2 * width, inside)
        self.scales = nn.ModuleList(nn.Conv2d(inside, inside, k, padding=k // 2, groups=inside) for k in KERNELS)
        self.whole = nn.Linear(inside, inside)
        self.out = nn.Linear(inside, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Frames (P, H, W, C) and their neighbours alike -> blended frames (P, H, W, C)."""
        context = gelu(self.down(torch.cat([one, other], dim=-1)))
        maps = context.permute(0, 3, 1, 2)
        near = sum(scale(maps) for scale in self.scales).permute(0, 2, 3, 1)
        far = self.whole(context.mean(dim=(1, 2), keepdim=True))
        weight = self.out(gelu(near + far)).float().softmax(dim=-1).to(one.dtype)
        return weight[..., :1] * one + weight[..., 1:] * other

    def flops(self, pairs: int, area: int) -> int:
        """Of so many pairs of frames of that many places."""
        inside = sum(2 * k * k for k in KERNELS) * self.out.in_features * pairs * area
        return (
            inside + linear_flops(self.whole, pairs) + sum(linear_flops(x, pairs * area) for x in (self.down, self.out))
        )


@register
@dataclass(frozen=True)
class InTI(Learned, Resampler):
    """Blend pairs of neighbouring frames place by place, with two weights from a network of several scales.

    Paper:   Zhang et al., 2024, https://arxiv.org/abs/2408.06840
    Code:    none found.
    Formula: u = gelu(D [x[2 j]; x[2 j + 1]]); s = DW1(u) + DW3(u) + DW5(u) + G mean(u); w = softmax(O gelu(s));
             z = w[0] x[2 j] + w[1] x[2 j + 1]; until count / H W frames are left, at most half of them in one round; a
             round that needs fewer takes the pairs of largest mean cosine at the same place
    Shapes:  x (B, T H W, C) -> (B, t H W, C) before the projector, raster order
    Cost:    for each pair of frames H W (4 C c + 70 c + 4 c) + 2 c^2 with c = C / 8
    Differs: only an outline is published: linear blends of neighbours at one place, two weights by softmax from a
             network of several scales, half the frames each time, between blocks of the encoder. The network is this
             project's, and so are counts between the halves. Hosts' towers see one frame at a time, so it acts behind
             the tower, which saves nothing there. All rounds share one network. It starts as the plain mean.

    Args:
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: tokens are not a whole grid, or `count` is not a number of whole frames.
    """

    name = "inti"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "before"
    paper = "Zhang et al., 2024, https://arxiv.org/abs/2408.06840"
    fidelity = "reconstruction"

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual)

    def reachable(self, grid: Grid) -> Sequence[int]:
        area = grid[1] * grid[2]
        return range(area, grid[0] * area + 1, area)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        (t, h, w), b = tokens.grid, len(tokens.x)
        x, frame = tokens.x.view(b, t, -1), torch.arange(t, device=tokens.x.device).expand(b, t)
        for r in rounds(t, count // (h * w)):
            x, frame = self.halved(x, frame, r, (h, w))
        place = frame.unsqueeze(-1) * h * w + torch.arange(h * w, device=frame.device)
        return Resampled(x.reshape(b, count, -1), place.flatten(1), (frame.shape[1], h, w))

    def halved(self, x: Tensor, frame: Tensor, r: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Frames (B, T, H W C) and their numbers (B, T), with r pairs blended: (B, T - r, H W C) and (B, T - r)."""
        b, t, wide = x.shape
        each = x.view(b, t, size[0] * size[1], -1)
        alike = cosine_to(each[:, 0 : t - 1 : 2], each[:, 1::2]).mean(dim=-1)  # (B, T // 2)
        first = 2 * selection(rank(alike) < r).anchor  # (B, r)
        pairs = (rows(x, index).view(b * r, *size, -1) for index in (first, first + 1))
        blended = self.run(*pairs).reshape(b, r, wide)
        x = x.scatter(1, first.unsqueeze(-1).expand(-1, -1, wide), blended)
        stays = selection(torch.ones_like(frame, dtype=torch.bool).scatter(1, first + 1, False)).anchor
        return rows(x, stays), frame.gather(1, stays)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        area = grid[1] * grid[2]
        return self.loaded.flops((n - count) // area, area)

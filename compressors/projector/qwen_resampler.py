"""Qwen-VL's resampler: one cross-attention, in which queries on a lattice find the tokens by where these stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.grids import largest
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import (
    SHARPNESS,
    Attention,
    drawn,
    heads_of,
    linear_flops,
    look_around,
    reach,
    sincos,
    stretched,
)
from foveate.compressors.planes import check_one_frame, check_whole, counts, raster, side
from foveate.compressors.registry import register


class Network(nn.Module):
    """Queries, one attention in the width of the decoder, one matrix behind it.

    Args:
        width: C of the tokens that come.
        out: D of those that leave, and of the attention.
        lattice: (rows, columns) for which queries are kept; other lattices are interpolated.
        published: start at random.
        projector: of the host; its matrices are taken over, what it does between them is not.
    """

    def __init__(self, width: int, out: int, lattice: tuple[int, int], published: bool, projector: Projector) -> None:
        super().__init__()
        self.lattice = lattice
        self.queries = nn.Parameter(torch.empty(lattice[0] * lattice[1], out))
        self.enter = nn.Sequential() if width == out else nn.Linear(width, out, bias=False)
        self.norm_q, self.norm_kv, self.norm_out = (nn.LayerNorm(out, eps=1e-6) for _ in range(3))
        self.attention = Attention(out, heads_of(out, 128))
        self.project = nn.Linear(out, out, bias=False)
        drawn(self)
        nn.init.normal_(self.queries, std=0.02)
        nn.init.normal_(self.project.weight, std=out**-0.5)
        if not published:
            self._near(projector)

    @torch.no_grad()
    def _near(self, projector: Projector) -> None:
        """The start at which each query hands on what stands around its place."""
        look_around(self.attention)
        nn.init.zeros_(self.norm_q.weight)
        small = reach(self.attention) ** 0.5 / SHARPNESS  # logits of features are near 1 then
        nn.init.constant_(self.norm_kv.weight, small)
        for part, (weight, _) in zip((self.enter, self.project), projector, strict=False):
            if isinstance(part, nn.Linear) and part.weight.shape == weight.shape:
                part.weight.copy_(weight)

    def forward(self, x: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        """(B, H W, C) of a grid of this size -> (B, D, h, w)."""
        places = sincos(*cells, self.project.in_features).to(x)
        query = self.norm_q(stretched(self.queries, self.lattice, cells)) + places
        value = self.norm_kv(self.enter(x))
        read = self.attention(query.expand(len(x), -1, -1), value + stretched(places, cells, size), value)
        return self.project(self.norm_out(read)).mT.unflatten(2, cells)

    def flops(self, m: int, n: int) -> int:
        """Of m queries to n tokens."""
        enter = linear_flops(self.enter, n) if isinstance(self.enter, nn.Linear) else 0
        return enter + self.attention.flops(m, n) + linear_flops(self.project, m)


@register
@dataclass(frozen=True)
class QwenResampler(Learned, Resampler):
    """Cross-attention of learned queries on an h x w lattice to the encoder's tokens, both marked with fixed places.

    Paper:   Bai et al. (Qwen-VL), 2023, https://arxiv.org/abs/2308.12966
    Code:    https://huggingface.co/Qwen/Qwen-VL, visual.py; read at https://github.com/Yuliang-Liu/Monkey,
             monkey_model/visual.py
    Formula: v = LN(V x); y = W LN(attention(LN(q) + s, v + s', v)); s: fixed sin-cos places of the lattice, half of the
             features for the column and half for the row, s' = s stretched to H x W
    Shapes:  x (B, H W, C) -> (B, h w, D), raster order
    Cost:    2 n C D + 4 (n + m) D^2 + 4 m n D + 2 m D^2 for m queries to n tokens.
    Differs: the published queries are 16 x 16 and serve one count; here the lattice is the host's own grid shrunk to
             at most `queries`, and other counts interpolate them, with places built for their own lattice. By default
             the attention starts as an average around each query's place and takes over the matrices of the host's
             projector; for this, features of places are dealt out to the heads in turn, since in heads of neighbouring
             features few can tell places apart. The published module starts at random.

    Args:
        queries: at most how many are kept.
        published: start at random.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `queries` is below 1, D is no multiple of 4, tokens are not a whole grid of one frame, or `count` is
            not that of one of the smaller grids.
    """

    name = "qwen_resampler"
    stages = ("projector",)
    modality = "image"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    paper = "Bai et al., 2023, https://arxiv.org/abs/2308.12966"
    fidelity = "reference"

    queries: int = 256
    published: bool = False

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError(f"qwen_resampler: queries {self.queries} is below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        if widths.decoder % 4:
            raise ValueError(f"qwen_resampler: places for {widths.decoder} features: must be a multiple of 4")
        lattice = largest(*widths.grid[1:], self.queries)
        return Network(widths.visual, widths.decoder, lattice, self.published, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts((1, *grid[1:]))

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        check_one_frame(self.name, tokens)
        return raster(self.run(tokens.x, tokens.grid[1:], side(tokens.grid, count)), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(count, n)

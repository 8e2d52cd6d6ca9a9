"""MQT: learned queries read the picture; the first m of them are a picture in m tokens, for any m."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.grids import largest
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import (
    Attention,
    copy_product,
    heads_of,
    linear_flops,
    look_around,
    sincos,
    spread,
    stretched,
)
from foveate.compressors.planes import check_one_frame, check_whole, placeless, standing
from foveate.compressors.registry import register


class Network(nn.Module):
    """Queries, one attention in the width of the encoder, one matrix to that of the decoder.

    Args:
        width: C of the tokens that come.
        out: D of those that leave.
        lattice: (rows, columns) of the grid on which the queries stand.
        content: keys hold features, not positions alone.
        published: the authors' norms and order of queries, and their start.
        projector: of the host, whose matrices multiplied are the last one's start.
    """

    def __init__(
        self, width: int, out: int, lattice: tuple[int, int], content: bool, published: bool, projector: Projector
    ) -> None:
        super().__init__()
        self.lattice, self.content, self.published = lattice, content, published
        count = lattice[0] * lattice[1]
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, width), std=0.02))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attention = Attention(width, heads_of(width))
        self.project = nn.Linear(width, out, bias=False)
        nn.init.normal_(self.project.weight, std=out**-0.5)
        self.register_buffer("places", sincos(*lattice, width), persistent=False)
        order, share = torch.arange(count), torch.ones(count)
        if not published:
            order, share = spread(*lattice), (1 + torch.arange(count)) / count  # the k-th has a k-th of the picture
            look_around(self.attention)
            copy_product(self.project, projector)
            for norm in (self.norm_q, self.norm_k):
                nn.init.zeros_(norm.weight)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("marks", self.places[order] * share.unsqueeze(1), persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int], m: int) -> Tensor:
        """(B, H W, C) of a grid of this size -> (B, m, D), in the order of the queries."""
        places, queries, marks = stretched(self.places, self.lattice, size), self.queries[:m], self.marks[:m]
        if self.published:
            query = self.norm_q(queries + marks)
            key = self.norm_k(x + places if self.content else places.expand_as(x))
        else:
            query = self.norm_q(queries) + marks
            key = self.norm_k(x) + places if self.content else places.expand_as(x)
        return self.project(self.attention(query.expand(len(x), -1, -1), key, self.norm_v(x)))


@register
@dataclass(frozen=True)
class Mqt(Learned, Resampler):
    """Cross-attention of learned queries to the encoder's tokens; queries never see each other, so any prefix serves.

    Paper:   Hu et al., NeurIPS 2024, https://arxiv.org/abs/2405.19315
    Code:    https://github.com/gordonhu608/MQT-LLaVA, llava/model/multimodal_projector/builder.py
    Formula: y[:m] = W attention(LN(q[:m]) + a s[:m], LN(x) + s', LN(x)); s: fixed sin-cos places of the queries, a: k/M
             for the k-th of M; s' = those of the lattice stretched to H x W
    Shapes:  x (B, H W, C) -> (B, m, D), in raster order of the queries' places
    Cost:    4 (n + m) C^2 + 4 m n C + 2 m C D.
    Differs: published queries and keys are LN(q + s) and LN(x + s'), queries stand in raster order, so that the first
             ones are the upper rows, and all starts at random. By default the places of the first m lie evenly over
             the picture, for any m, and each query starts as an average around its place, the wider the earlier it
             comes; W starts as the host's projector without what it does between its matrices. In the released code
             keys are places alone, so the attention is the same for every picture: keys "places". The lattice is 16 x
             16 there; here it is the host's own grid, shrunk to at most `queries` places.

    Args:
        queries: at most how many there are.
        keys: "content" or "places".
        published: the authors' norms, order and start.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `queries` is below 1, `keys` is unknown, C is no multiple of 4, tokens are not a whole grid of one
            frame, or `count` exceeds the queries.
    """

    name = "mqt"
    stages = ("projector",)
    modality = "image"
    positions = "renumber"
    requires_grid = True
    hook = "instead"
    paper = "Hu et al., NeurIPS 2024, https://arxiv.org/abs/2405.19315"
    fidelity = "reference"

    queries: int = 256
    keys: str = "content"
    published: bool = False

    def __post_init__(self) -> None:
        if self.queries < 1 or self.keys not in ("content", "places"):
            raise ValueError(f"mqt: queries {self.queries} must be 1 or more, keys {self.keys!r} 'content' or 'places'")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        lattice, content = self._lattice(widths.grid), self.keys == "content"
        return Network(widths.visual, widths.decoder, lattice, content, self.published, projector)

    def _lattice(self, grid: Grid) -> tuple[int, int]:
        return largest(*grid[1:], min(self.queries, grid[1] * grid[2]))

    def reachable(self, grid: Grid) -> Sequence[int]:
        lattice = self._lattice(grid) if self.network is None else self.network.lattice
        return range(1, min(lattice[0] * lattice[1], grid[1] * grid[2]) + 1)

    def training_counts(self, grid: Grid) -> Sequence[int]:
        most = self.reachable(grid)[-1]
        powers = [2**k for k in range((most - 1).bit_length())]  # below the whole set
        return [*powers, *[most] * max(1, round(len(powers) / 3))]  # about one draw in four

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        check_one_frame(self.name, tokens)
        x, network = self.run(tokens.x, tokens.grid[1:], count), self.loaded
        if network.published:
            return placeless(x)
        return standing(x, network.order[:count], network.lattice, tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        network = self.loaded
        return network.attention.flops(count, n) + linear_flops(network.project, count)

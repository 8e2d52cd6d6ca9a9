"""D-Abstractor (Honeybee): queries on a lattice read the encoder's map at points that they choose themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, relu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.grids import largest
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Attention, copy_product, inner, linear_flops, stretched
from foveate.compressors.planes import check_one_frame, counts, planes, raster, side
from foveate.compressors.registry import register


class Deformable(nn.Module):
    """Attention of each query to a few points of a map around its reference point; points and weights follow from it.

    Points start as square rings of growing radius, in another direction for each head, equally weighted.

    Args:
        width: of queries, map and output.
        heads: divides it.
        points: of each head.
    """

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offset, self.weight = nn.Linear(width, 2 * heads * points), nn.Linear(width, heads * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        for part in (self.offset, self.weight):
            nn.init.zeros_(part.weight)
        for part in (self.weight, self.value, self.out):
            nn.init.zeros_(part.bias)
        for part in (self.value, self.out):
            nn.init.xavier_uniform_(part.weight)
        angle = 2 * math.pi * torch.arange(heads) / heads
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ring = ring / ring.abs().amax(dim=-1, keepdim=True)  # (H, 2), one cell away
        with torch.no_grad():
            self.offset.bias.copy_((ring.unsqueeze(1) * torch.arange(1, points + 1).view(-1, 1)).flatten())

    def forward(self, query: Tensor, reference: Tensor, maps: Tensor) -> Tensor:
        """Queries (B, M, d) at (M, 2) points (x, y) of [0, 1], maps (B, H, W, d) -> (B, M, d)."""
        b, height, width, d = maps.shape
        shape = (b, -1, self.heads, self.points)
        cells = torch.tensor([width, height], device=query.device, dtype=query.dtype)
        at = reference.view(-1, 1, 1, 2) + self.offset(query).view(*shape, 2) / cells  # (B, M, h, P, 2)
        weight = self.weight(query).view(shape).softmax(dim=-1)
        value = self.value(maps).view(b, height, width, self.heads, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        at, weight = (part.transpose(1, 2).flatten(0, 1) for part in (2 * at - 1, weight))  # (B h, M, P, ..)
        seen = grid_sample(value, at, mode="bilinear", padding_mode="zeros", align_corners=False)  # (B h, d / h, M, P)
        read = (seen * weight.unsqueeze(1)).sum(dim=-1)
        return self.out(read.view(b, d, -1).mT)

    def flops(self, m: int, n: int) -> int:
        """Of m queries to a map of n places."""
        of_queries = sum(linear_flops(part, m) for part in (self.offset, self.weight, self.out))
        return of_queries + linear_flops(self.value, n)


class Layer(nn.Module):
    """Queries attend to each other, then to the map, then think for themselves; a norm behind each sum."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.own, self.cross = Attention(width, heads), Deformable(width, heads, points)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, state: Tensor, place: Tensor, reference: Tensor, maps: Tensor) -> Tensor:
        """(B, M, d) states, (B, M, d) of what the lattice shows there -> (B, M, d)."""
        state = self.norms[0](state + self.own(state + place, state + place, state))
        state = self.norms[1](state + self.cross(state + place, reference, maps))
        return self.norms[2](state + self.down(relu(self.up(state))))

    def flops(self, m: int, n: int) -> int:
        """Of m queries to a map of n places."""
        return self.own.flops(m, m) + self.cross.flops(m, n) + linear_flops(self.up, m) + linear_flops(self.down, m)


class Network(nn.Module):
    """Queries, positions, layers and a matrix into the decoder.

    Args:
        widths: of the host.
        width: d of queries and layers.
        lattice: (rows, columns) for which queries and reference points are kept; other lattices are interpolated.
        layers: how many.
        heads, points: of each.
    """

    def __init__(
        self, widths: Widths, width: int, lattice: tuple[int, int], layers: int, heads: int, points: int
    ) -> None:
        super().__init__()
        self.size, self.lattice = widths.grid[1:], lattice
        self.enter = nn.Sequential() if width == widths.visual else nn.Linear(widths.visual, width)
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.size[0] * self.size[1], width), std=0.02))
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(lattice[0] * lattice[1], width), std=0.02))
        self.shift = nn.Parameter(torch.zeros(lattice[0] * lattice[1], 2))
        self.layers = nn.ModuleList(Layer(width, heads, points) for _ in range(layers))
        self.project = nn.Linear(width, widths.decoder)

    @torch.no_grad()
    def look_around(self, projector: Projector) -> None:
        """The start at which each query hands on the mean of what stands near its point: points half as far away,
        values and readings as they are, nothing from other queries or thinking, and the projector's matrices
        multiplied at last."""
        for layer in self.layers:
            layer.cross.offset.bias.mul_(0.5)
            for part in (layer.cross.value, layer.cross.out):
                nn.init.eye_(part.weight)
            for part in (layer.own.out, layer.down):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
        copy_product(self.project, projector)

    def forward(self, maps: Tensor, cells: tuple[int, int]) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        size = tuple(maps.shape[2:])
        x = self.enter(maps.permute(0, 2, 3, 1)) + stretched(self.places, self.size, size).view(*size, -1)
        place = adaptive_avg_pool2d(x.permute(0, 3, 1, 2).float(), cells).to(x.dtype).flatten(2).mT
        state = stretched(self.queries, self.lattice, cells).expand_as(place)
        reference = points(cells, size).to(x) + stretched(self.shift, self.lattice, cells)
        for layer in self.layers:
            state = layer(state, place, reference, x)
        return self.project(state).mT.unflatten(2, cells)

    def flops(self, m: int, n: int) -> int:
        """Of m queries to a map of n places."""
        enter = linear_flops(self.enter, n) if isinstance(self.enter, nn.Linear) else 0
        return enter + sum(layer.flops(m, n) for layer in self.layers) + linear_flops(self.project, m)


def points(cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(h w, 2) points (x, y) of [0, 1], evenly from the middle of the first patch to that of the last; one: halfway."""
    rows, columns = (
        torch.linspace(0.5, n - 0.5, m) / n if m > 1 else torch.tensor([0.5]) for m, n in zip(cells, size, strict=True)
    )
    return torch.stack([columns.expand(cells), rows.view(-1, 1).expand(cells)], dim=-1).flatten(0, 1)


@register
@dataclass(frozen=True)
class DAbstractor(Learned, Resampler):
    """Layers of self-attention among queries and of deformable attention to the map around each query's own point.

    Paper:   Cha et al. (Honeybee), CVPR 2024, https://arxiv.org/abs/2312.06742
    Code:    https://github.com/khanrc/honeybee, honeybee/projectors
    Formula: v = x + e; p = mean of v in each cell of the lattice; per layer q = LN(q + A(q + p, q + p, q)),
             q = LN(q + W sum_k w[k] (V v)(r + o[k])) with weights w and offsets o linear in q + p, q = LN(q + FFN(q));
             y = U q
    Shapes:  x (B, H W, C) -> (B, h w, D), raster order
    Cost:    each layer 14 m d^2 + 4 m^2 d + 6 heads points m d + 2 n d^2 for m queries to n tokens; 2 m d D.
    Differs: published weights serve one count; here queries and reference points are kept for a lattice and
             interpolated to others. A single query reads around the middle, not the top left patch. Points are as
             free as there. The published module starts at random, with points one to four patches away; by default
             each query starts as the mean of points half as far. No dropout, no end tokens.

    Args:
        layers: how many.
        width: d, 1024 in the code, a multiple of `heads`; None = see `networks.inner`.
        heads: of both attentions.
        points: that each head reads.
        queries: at most how many the kept lattice has.
        published: the authors' start.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: a hyperparameter is below 1, the width is no multiple of `heads`, tokens are not a whole grid of one
            frame, or `count` is not that of one of the smaller grids.
    """

    name = "d_abstractor"
    stages = ("projector",)
    modality = "image"
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    rate = 1e-4
    rates = {"shift": 2e-5, "offset": 2e-5}
    paper = "Cha et al., CVPR 2024, https://arxiv.org/abs/2312.06742"
    fidelity = "reference"

    layers: int = 6
    width: int | None = None
    heads: int = 8
    points: int = 4
    queries: int = 144
    published: bool = False

    def __post_init__(self) -> None:
        told = {"layers": self.layers, "heads": self.heads, "points": self.points, "queries": self.queries}
        if min(told.values()) < 1:
            raise ValueError(f"d_abstractor: {told}: each must be 1 or more")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        width = self.width or inner(widths.visual)
        if width % self.heads:
            raise ValueError(f"d_abstractor: width {width} is no multiple of {self.heads} heads")
        lattice = largest(*widths.grid[1:], self.queries)
        network = Network(widths, width, lattice, self.layers, self.heads, self.points)
        if not self.published:
            network.look_around(projector)
        return network

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts((1, *grid[1:]))

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_one_frame(self.name, tokens)
        return raster(self.run(planes(self.name, tokens), side(tokens.grid, count)), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(count, n)

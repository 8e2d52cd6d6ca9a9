"""Q-Former: learned queries talk to each other, look at the picture in every second layer, and stand for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import (
    Attention,
    Mlp,
    copy_product,
    drawn,
    heads_of,
    linear_flops,
    look_around,
    sincos,
    spread,
)
from foveate.compressors.planes import check_one_frame, placeless, standing
from foveate.compressors.registry import register

LOUD = 4.0
"""How much more what is read weighs at first than the mark of a query's place."""


class Layer(nn.Module):
    """BERT's layer on queries, a norm behind each sum; some also read the picture.

    Args:
        width: d of the queries.
        source: width of the tokens that it reads; None = it does not.
    """

    def __init__(self, width: int, source: int | None) -> None:
        super().__init__()
        self.talk = Attention(width, heads_of(width))
        self.read = None if source is None else Attention(width, heads_of(width), source)
        self.think = Mlp(width, width, between=4 * width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2 if source is None else 3))

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, m, d) queries, (B, N, C) keys and values -> (B, m, d)."""
        x = self.norms[0](x + self.talk(x, x, x))
        if self.read is not None:
            x = self.norms[1](x + self.read(x, key, value))
        return self.norms[-1](x + self.think(x))

    def flops(self, m: int, n: int) -> int:
        """Of m queries and n tokens."""
        read = 0 if self.read is None else self.read.flops(m, n)
        return self.talk.flops(m, m) + read + self.think.flops(m)


class Network(nn.Module):
    """Queries, layers and a matrix into the decoder.

    Args:
        source: C of the tokens that come.
        width: d of the queries.
        out: D of the tokens that leave.
        queries, layers: how many.
        around: (rows, columns) of the host's grid, where queries start around places of it; None = at random.
        projector: of the host, to start from as well.
    """

    def __init__(
        self,
        source: int,
        width: int,
        out: int,
        queries: int,
        layers: int,
        around: tuple[int, int] | None = None,
        projector: Projector = (),
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm_in, self.norm_queries = nn.LayerNorm(source), nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, None if number % 2 else source) for number in range(layers))
        self.project = nn.Linear(width, out)
        drawn(self)
        nn.init.normal_(self.queries, std=0.02)
        self.around, self.content = around, None
        if around is not None:
            self.content = nn.Parameter(torch.zeros(source))
            order = spread(*around)
            order = order[torch.arange(queries) % len(order)]  # a small grid has fewer places
            self.register_buffer("order", order, persistent=False)
            self._look_around(sincos(*around, source)[order], projector)

    @torch.no_grad()
    def _look_around(self, marks: Tensor, projector: Projector) -> None:
        """The start at which the first layer reads what stands around a query's place (M, C) and the others add
        nothing. Every second feature of a place has its sign turned, so that norms have no mean to take away."""
        read = self.layers[0].read
        look_around(read)
        turn = 1 - 2 * (torch.arange(read.q.in_features) % 2)
        self.queries.copy_(marks[:, torch.arange(len(turn)) * marks.shape[1] // len(turn)] * turn)
        read.q.weight.mul_(turn * 0.5**0.5)  # a norm makes places longer by sqrt(2)
        read.v.weight.mul_(LOUD)
        for layer in self.layers:
            added = [layer.talk.out, layer.think.layers[1]]
            added += [] if layer.read in (None, read) else [layer.read.out]
            for part in added:
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
        copy_product(self.project, projector)

    def forward(self, x: Tensor, places: Tensor | None, m: int) -> Tensor:
        """(B, N, C), positions of their places alike, -> (B, m, D), in the order of the queries."""
        value = self.norm_in(x)
        key = value if self.content is None else value * self.content
        key = key if places is None else key + places
        state = self.norm_queries(self.queries[:m]).expand(len(x), -1, -1)
        for layer in self.layers:
            state = layer(state, key, value)
        return self.project(state)

    def flops(self, m: int, n: int) -> int:
        """Of m queries and n tokens."""
        return sum(layer.flops(m, n) for layer in self.layers) + linear_flops(self.project, m)


@register
@dataclass(frozen=True)
class QFormer(Learned, Resampler):
    """A small transformer on learned queries with cross-attention to all tokens, CLS included, in every second layer.

    Paper:   Li et al. (BLIP-2), ICML 2023, https://arxiv.org/abs/2301.12597
    Code:    https://github.com/salesforce/LAVIS, lavis/models/blip2_models
    Formula: q = LN(table[:m]); per layer q = LN(q + A(q, q)), in layers 0, 2, 4 .. q = LN(q + A(q, LN(x) + s, LN(x))),
             q = LN(q + FFN(q)); y = U q, with s fixed sin-cos places
    Shapes:  x (B, N, C) -> (B, m, D), in raster order of the queries' places
    Cost:    each layer 24 m d^2 + 4 m^2 d, every second one 4 m d^2 + 4 n C d + 4 m n d on top; 2 m d D.
    Differs: the published module has 12 layers of width 768 and 32 queries, starts from BERT and is trained with
             captions first; there is no BERT here. With places each query starts as an average around a place of the
             grid, keys are c LN(x) + s with c from 0 on, and U starts as the host's projector without what it does
             between its matrices; `published` starts at random, with the queries' own order. There keys have no
             places, which is places False. A prefix of the queries serves smaller counts where it was trained to;
             since queries see each other, it is not the prefix of a longer answer. No dropout, and no question.

    Args:
        queries: at most how many there are.
        layers: how many.
        width: d, at most that of the tokens.
        places: add fixed positions to keys.
        published: start at random.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `queries`, `layers` or `width` is below 1, C is no multiple of 4 with places, there are several
            frames, or `count` exceeds the queries.
    """

    name = "q_former"
    stages = ("projector",)
    modality = "image"
    positions = "renumber"
    takes_cls = True
    hook = "instead"
    rate = 1e-4
    paper = "Li et al., ICML 2023, https://arxiv.org/abs/2301.12597"
    fidelity = "reference"

    queries: int = 64
    layers: int = 4
    width: int = 512
    places: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        told = {"queries": self.queries, "layers": self.layers, "width": self.width}
        if min(told.values()) < 1:
            raise ValueError(f"q_former: {told}: each must be 1 or more")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        if self.places and widths.visual % 4:
            raise ValueError(f"q_former: places for {widths.visual} features: must be a multiple of 4")
        width = min(self.width, widths.visual)
        around = widths.grid[1:] if self.places and not self.published else None
        return Network(widths.visual, width, widths.decoder, self.queries, self.layers, around, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        queries = self.queries if self.network is None else len(self.network.queries)
        return range(1, min(queries, grid[0] * grid[1] * grid[2]) + 1)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_one_frame(self.name, tokens)
        x = self.run(tokens.x, self.places_of(tokens) if self.places else None, count)
        if self.loaded.around is None:
            return placeless(x)
        return standing(x, self.loaded.order[:count], self.loaded.around, tokens)

    def places_of(self, tokens: Tokens) -> Tensor:
        """(B, N, C) positions of the tokens' places, zeros where there is none."""
        width = tokens.x.shape[-1]
        table = torch.cat([sincos(*tokens.grid[1:], width), torch.zeros(1, width)]).to(tokens.x.device)
        return table[tokens.position]  # -1 is the last row

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(count, n)

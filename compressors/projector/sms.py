"""Self-Mining Sampler (HiRes-LLaVA): pooled tokens look once more at the tokens that they are the mean of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.blocks import places_in_cells
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import Mlp, attended, copy_into, drawn, fits, heads_of, linear_flops, seen
from foveate.compressors.planes import check_whole, counts, raster, side
from foveate.compressors.registry import register


class Network(nn.Module):
    """An MLP on pooled tokens; what attention adds to its hidden layer is nothing at first.

    Args:
        width: C of the tokens that come.
        out: D of those that leave, also of the attention.
        projector: of the host, to start from.
    """

    def __init__(self, width: int, out: int, projector: Projector) -> None:
        super().__init__()
        self.heads = heads_of(out)
        self.query, self.key, self.value = (nn.Linear(width, out, bias=False) for _ in range(3))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(out) for _ in range(3))
        self.join = nn.Linear(out, out, bias=False)
        self.mlp = Mlp(width, out)
        drawn(self)
        nn.init.zeros_(self.join.weight)
        if fits(self.mlp.layers, projector):
            copy_into(self.mlp.layers, projector)

    def forward(self, x: Tensor, grid: Grid, cells: tuple[int, int], everywhere: bool) -> Tensor:
        """(B, T H W, C) -> (B T, D, h, w)."""
        t, height, width = grid
        frames = x.unflatten(1, (t, -1)).flatten(0, 1)  # (B T, H W, C)
        pooled = adaptive_avg_pool2d(frames.mT.unflatten(2, (height, width)).float(), cells).to(x.dtype).flatten(2).mT
        q, k, v = (
            norm(part(rows))
            for norm, part, rows in (
                (self.norm_q, self.query, pooled),
                (self.norm_k, self.key, frames),
                (self.norm_v, self.value, frames),
            )
        )
        if everywhere:
            q, k, v = (rows.unflatten(0, (-1, t)).flatten(1, 2) for rows in (q, k, v))
            read = attended(q, k, v, self.heads).unflatten(1, (t, -1)).flatten(0, 1)
        else:
            read = seen(q, k, v, self.heads, places_in_cells((height, width), cells).to(x.device))
        first, second = self.mlp.layers
        return second(gelu(first(pooled) + self.join(read))).mT.unflatten(2, cells)

    def flops(self, m: int, n: int, everywhere: bool) -> int:
        """Of m pooled tokens and n tokens."""
        products = 4 * m * n * self.join.in_features if everywhere else 0
        of_queries = linear_flops(self.query, m) + linear_flops(self.join, m) + self.mlp.flops(m)
        return of_queries + 2 * linear_flops(self.key, n) + products


@register
@dataclass(frozen=True)
class Sms(Learned, Resampler):
    """Means of h x w cells, each enriched by attention to its own cell, then projected.

    Paper:   Huang et al. (HiRes-LLaVA), CVPR 2025, https://arxiv.org/abs/2407.08706
    Code:    none found.
    Formula: p = mean of x in each cell; q = LN(Q p), k = LN(K x), v = LN(V x);
             y = W2 gelu(W1 p + b1 + O attention(q, k, v)) + b2 with q of a cell seeing the keys of its cell; cells as
             in adaptive average pooling
    Shapes:  x (B, T H W, C) -> (B, T h w, D), raster order
    Cost:    4 n C D + 2 m (2 C D + 2 D^2) for m tokens out; reach "all" 4 m n D on top, "cell" about 4 n D of inner
             products that are not counted.
    Differs: the paper's text was not at hand. That queries are pooled from the tokens and look at a narrowed region is
             told of it; widths, norms and the added path are inferred. O starts at zero and the MLP from the host's
             projector, which is pooling before it. The paper's other module, inside the encoder, is left out.

    Args:
        reach: what a query sees: its "cell", or "all" tokens of all frames.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `reach` is unknown, tokens are not a whole grid, or `count` is not T times one of the smaller grids.
    """

    name = "sms"
    stages = ("projector",)
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    paper = "Huang et al., CVPR 2025, https://arxiv.org/abs/2407.08706"
    fidelity = "reconstruction"

    reach: str = "cell"

    def __post_init__(self) -> None:
        if self.reach not in ("cell", "all"):
            raise ValueError(f"sms: reach {self.reach!r} is neither 'cell' nor 'all'")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.visual, widths.decoder, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return counts(grid)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        return raster(self.run(tokens.x, tokens.grid, side(tokens.grid, count), self.reach == "all"), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(count, n, self.reach == "all")

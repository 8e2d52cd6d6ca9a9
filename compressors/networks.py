"""Parts of the networks of learned methods. What they cost counts matrix products, a multiply-add as 2."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from foveate.compressors.learned import Projector


class Mlp(nn.Module):
    """Linear, GELU, Linear: (..., C) -> (..., D), as the projector of LLaVA-1.5.

    Args:
        width: C.
        out: D, also in between.
        projector: weights to start from, where their shapes fit.
    """

    def __init__(self, width: int, out: int, projector: Projector = ()) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((width, out, out)))
        if fits(self.layers, projector):
            copy_into(self.layers, projector)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        return second(gelu(first(x)))

    def flops(self, rows: int) -> int:
        """Of that many rows."""
        return sum(linear_flops(layer, rows) for layer in self.layers)


def fits(layers: nn.ModuleList, projector: Projector) -> bool:
    """Whether a projector has exactly these matrices."""
    return [layer.weight.shape for layer in layers] == [weight.shape for weight, _ in projector]


@torch.no_grad()
def copy_into(layers: nn.ModuleList, projector: Projector) -> None:
    """Gives linear layers the weights of a projector."""
    for layer, (weight, bias) in zip(layers, projector, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def linear_flops(layer: nn.Linear, rows: int) -> int:
    """Of a linear layer on that many rows."""
    return 2 * rows * layer.in_features * layer.out_features


class Attention(nn.Module):
    """Multi-head attention of some rows to others, all of one width; plain products, nothing masked.

    Args:
        width: of queries, keys, values and output.
        heads: divides it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, M, C), (B, N, C), (B, N, C) -> (B, M, C)."""
        rows = (part(x) for part, x in ((self.q, query), (self.k, key), (self.v, value)))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in rows)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, M, N)
        return self.out((logits.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))

    def flops(self, m: int, n: int) -> int:
        """Of m queries to n keys."""
        width = self.q.in_features
        return linear_flops(self.q, 2 * m + 2 * n) + 4 * m * n * width


def heads_of(width: int, most: int = 64) -> int:
    """The fewest heads of at most `most` features each that divide a width."""
    return next(heads for heads in range(-(-width // most), width + 1) if width % heads == 0)


def inner(width: int) -> int:
    """The width to work in where authors have 1024: that of the tokens, unless they are several patches wide."""
    return width if width <= 1280 else 1024


def sincos(height: int, width: int, features: int) -> Tensor:
    """(h w, E) float32 fixed positions of a grid: half of the features tell the column, half the row.

    Each half is [sin(p w_k), cos(p w_k)] with w_k = 10000^(-k / (E / 4)) and whole-number positions p.

    Raises:
        ValueError: E is no multiple of 4.
    """
    if features % 4:
        raise ValueError(f"positions of {features} features: must be a multiple of 4")
    quarter = features // 4
    speed = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    column, row = (torch.arange(n, dtype=torch.float64)[:, None] * speed for n in (width, height))
    column = torch.cat([column.sin(), column.cos()], dim=1).expand(height, width, -1)
    row = torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(height, width, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1).float()


def stretched(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of one row for each place of a grid (h w, E), resized bicubically to another grid."""
    if old == new:
        return table
    maps = table.T.reshape(1, -1, *old)
    return interpolate(maps.float(), size=new, mode="bicubic", align_corners=False).flatten(2)[0].T.to(table.dtype)

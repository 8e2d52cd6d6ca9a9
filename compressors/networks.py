"""Parts of the networks of learned methods. What they cost counts matrix products, a multiply-add as 2."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, sigmoid, silu

from foveate.compressors.learned import Projector


class Mlp(nn.Module):
    """Linear, GELU, Linear: (..., C) -> (..., D), as the projector of LLaVA-1.5.

    Args:
        width: C.
        out: D, also in between.
        projector: weights to start from, where their shapes fit.
        between: features in between, where they are others.
    """

    def __init__(self, width: int, out: int, projector: Projector = (), between: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((width, between or out, out)))
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


@torch.no_grad()
def copy_product(layer: nn.Linear, projector: Projector) -> None:
    """Gives a linear layer the matrices of a projector multiplied, where they fit; what stands between is left out."""
    if not projector:
        return
    weight, bias = projector[0]
    for after, shift in projector[1:]:
        weight, bias = after @ weight, after @ bias + shift
    if weight.shape == layer.weight.shape:
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


def linear_flops(layer: nn.Linear, rows: int) -> int:
    """Of a linear layer on that many rows."""
    return 2 * rows * layer.in_features * layer.out_features


class Bottleneck(nn.Module):
    """RegNet's block on maps with channels last: to other channels, across neighbours, a gate, channels again, all
    added to what came.

    Args:
        width: channels that come.
        out: channels that leave, also in between.
        published: close with SiLU, and start with what is added at its usual size; else that starts at zero.
    """

    def __init__(self, width: int, out: int, published: bool) -> None:
        super().__init__()
        squeezed = round(width / 4)
        self.published = published
        self.enter, self.leave = nn.Linear(width, out, bias=False), nn.Linear(out, out, bias=False)
        self.across = nn.Conv2d(out, out, 3, padding=1, groups=out, bias=False)
        self.squeeze, self.excite = nn.Linear(out, squeezed), nn.Linear(squeezed, out)
        self.norms = nn.ModuleList(nn.LayerNorm(out) for _ in range(3))
        self.shortcut = nn.Sequential()
        if width != out:
            self.shortcut = nn.Sequential(nn.Linear(width, out, bias=False), nn.LayerNorm(out))
        if not published:
            nn.init.zeros_(self.norms[2].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (B, T, H, W, h)."""
        y = silu(self.norms[0](self.enter(x)))
        maps = self.across(y.flatten(0, 1).permute(0, 3, 1, 2))
        y = silu(self.norms[1](maps.permute(0, 2, 3, 1).view_as(y)))
        y = y * sigmoid(self.excite(silu(self.squeeze(y.mean(dim=(1, 2, 3), keepdim=True)))))
        y = self.shortcut(x) + self.norms[2](self.leave(y))
        return silu(y) if self.published else y

    def flops(self, n: int) -> int:
        """Of n tokens of one row."""
        linear = [self.enter, self.leave, *(part for part in self.shortcut if isinstance(part, nn.Linear))]
        gate = linear_flops(self.squeeze, 1) + linear_flops(self.excite, 1)
        return sum(linear_flops(part, n) for part in linear) + 2 * 9 * n * self.leave.out_features + gate


class Attention(nn.Module):
    """Multi-head attention of some rows to others; plain products.

    Args:
        width: of queries and output.
        heads: divides it.
        source: width of keys and values as they come, where it is another.
    """

    def __init__(self, width: int, heads: int, source: int | None = None) -> None:
        super().__init__()
        self.heads, other = heads, source or width
        self.q, self.k, self.v, self.out = (nn.Linear(w, width) for w in (width, other, other, width))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, places: Tensor | None = None) -> Tensor:
        """(B, M, C), (B, N, S), (B, N, S) -> (B, M, C). Query m sees keys `places` (M, k) alone, -1 = none; or all."""
        q, k, v = self.q(query), self.k(key), self.v(value)
        return self.out(attended(q, k, v, self.heads) if places is None else seen(q, k, v, self.heads, places))

    def flops(self, m: int, n: int, local: bool = False) -> int:
        """Of m queries to n keys; where each sees a few places only, what it does there is no matrix product."""
        products = 0 if local else 4 * m * n * self.q.in_features
        return linear_flops(self.q, 2 * m) + linear_flops(self.k, 2 * n) + products


SHARPNESS = 320
"""Logit of a place with itself at the start that `look_around` makes: a query reads its own cell and a little around
it."""


def reach(attention: Attention) -> float:
    """Inner product of the fixed positions of a place with themselves, in one head."""
    return attention.q.in_features / attention.heads / 2


@torch.no_grad()
def look_around(attention: Attention) -> None:
    """The start at which a query marked with a fixed position (see `sincos`) reads what stands around it and hands it
    on. Features of positions are dealt out to the heads in turn: in heads of neighbouring ones few can tell places
    apart. Of keys and values wider than queries every so many-th feature counts."""
    width, heads, source = attention.q.in_features, attention.heads, attention.k.in_features
    one = torch.eye(width)
    some = torch.eye(source)[torch.arange(width) * source // width]
    dealt = one.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1)  # each head has fast and slow features
    sharp = (SHARPNESS * (width / heads) ** 0.5 / reach(attention)) ** 0.5
    for part, weight in (
        (attention.q, sharp * dealt),
        (attention.k, sharp * dealt @ some),
        (attention.v, some),
        (attention.out, one),
    ):
        part.weight.copy_(weight)
        nn.init.zeros_(part.bias)


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Values that queries (B, M, C) find at keys (B, N, C): (B, M, C); mask (M, N) bool says who sees whom."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, M, N)
    logits = logits if mask is None else logits.masked_fill(~mask, float("-inf"))
    return (logits.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def seen(q: Tensor, k: Tensor, v: Tensor, heads: int, places: Tensor) -> Tensor:
    """Values (B, M, C) that each query finds at its own few of the keys (B, N, C).

    Args:
        q: queries.
        k: keys.
        v: values, as many.
        heads: divides C.
        places: (M, k) int64, which keys each query sees, at least one; -1 = none.
    """
    q = q.unflatten(-1, (heads, -1)).unsqueeze(2)  # (B, M, 1, H, d)
    near = places.clamp(min=0)
    k, v = (x[:, near].unflatten(-1, (heads, -1)) for x in (k, v))  # (B, M, k, H, d)
    logits = (q * k).sum(-1, keepdim=True).float() * q.shape[-1] ** -0.5
    weight = logits.masked_fill((places < 0)[..., None, None], float("-inf")).softmax(2)
    return (weight.to(v.dtype) * v).sum(2).flatten(2)


def drawn(network: nn.Module, std: float = 0.02) -> None:
    """Draws the matrices of all linear layers anew from a normal distribution; their biases are zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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


def spread(height: int, width: int) -> Tensor:
    """(h w,) all places of a grid in such an order that the first m, for any m, lie evenly over it.

    Each is the free place nearest to the next point of Roberts' R2 sequence, the lower index where two are as near.
    """
    golden = 1.32471795724474602596  # the root of g^3 = g + 1
    with torch.device("cpu"):  # it has values also where a network is built on paper
        steps = torch.arange(height * width, dtype=torch.float64).unsqueeze(1)
        wanted = (0.5 + steps * torch.tensor([1 / golden, 1 / golden**2], dtype=torch.float64)) % 1
        middles = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (height, width)]
        cells = torch.cartesian_prod(*middles)
    away = (
        (wanted.unsqueeze(1) - cells).square().sum(-1).round(decimals=9)
    )  # equal on every machine where they should be
    order = []
    for distances in away:
        order.append(int(distances.argmin()))
        away[:, order[-1]] = float("inf")
    return torch.tensor(order, device="cpu")

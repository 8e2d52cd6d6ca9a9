"""What compressors and hosts exchange (tokens, caches, reductions of both) and how a reduction is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""(T, H, W) of the visual tokens; an image has T = 1."""

SCATTERED = 4
"""Slots of one token up to which it is added to each by itself; from there on a product of matrices does it."""


@dataclass(frozen=True)
class Tokens:
    """Visual tokens at one site. B rows, N tokens, D features. Rows of a call have equal N: no padding here.

    Attributes:
        x: (B, N, D) features in the model's dtype.
        size: (B, N) float32, how many original tokens each one stands for.
        position: (B, N) int64, flat index into the grid; -1 = a summary row, or CLS where the method has `takes_cls`.
        grid: (T, H, W) of the tokens before any compression of this stage.
        seed: (B,) int64 from the input's digest, the only source of randomness.
        signals: `Signal.key` -> values, shapes in `signals.SHAPES`.
        site: which of the method's `sites` this is, from 0.
    """

    x: Tensor
    size: Tensor
    position: Tensor
    grid: Grid
    seed: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    site: int = 0

    @property
    def n(self) -> int:
        """Number of tokens in each row."""
        return self.x.shape[1]


@dataclass(frozen=True)
class Reduction:
    """What becomes of N tokens: K slots, linear in the tokens.

    Slot k = sum over (n, j) with into[n, j] == k of weight[n, j] * x[n]. Slots may come in any order, and keep it
    between the sites of one stage; leaving the stage, the host sorts them by anchor (`in_order`).

    Attributes:
        anchor: (B, K) int64, the token whose place slot k takes, unique in a row; -1 = no place of its own, goes last
            (a summary slot, which needs `into`, or an unused one).
        into: (B, N, J) int64 slot or -1 (nowhere); None = pure selection of the anchors.
        weight: (B, N, J) float32, with `into`. From a method with `bypass`, J = 1 and no `into`: what a token that goes
            around the layer, or the MLP branch of one that runs through it, is multiplied by.
        count: (B,) int64 slots really used, for methods that choose their number under the ceiling; the unused ones are
            last and have anchor -1.
        grid_out: set where the result is a grid again.
    """

    anchor: Tensor
    into: Tensor | None = None
    weight: Tensor | None = None
    count: Tensor | None = None
    grid_out: Grid | None = None


@dataclass(frozen=True)
class Resampled:
    """New tokens made by a `Resampler` or a `Streamer`.

    Attributes:
        x: (B, K, D) features.
        position: (B, K) int64, the place in the old grid of the token that each one stands nearest to; -1 = none.
        grid_out: the new grid, where they form one in raster order.
        size: (B, K) float32, original tokens that each stands for; None = equal shares of all.
    """

    x: Tensor
    position: Tensor
    grid_out: Grid | None = None
    size: Tensor | None = None


@dataclass(frozen=True)
class KVCache:
    """The cache of one decoder layer after prefill.

    Attributes:
        keys, values: (B, K, S, e) with K KV heads and S prompt entries; keys carry their rotation.
        visual: (S,) bool, the entries that stand for pixels.
        seed: (B,) int64.
        signals: `Signal.key` -> values.
        layer: the decoder layer, from 0.
        frame: (S,) int64, the frame of the row's grid that each visual entry shows; -1 = text, or no place of its own.
            None = not told: one picture.
    """

    keys: Tensor
    values: Tensor
    visual: Tensor
    seed: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    layer: int = 0
    frame: Tensor | None = None


@dataclass(frozen=True)
class KVReduction:
    """What becomes of one layer's cache: slot k = sum over s with into[s] == k of weight[s] * entry[s].

    Keys and values alike.

    Attributes:
        keep: (B, K, M) int64 ascending indices of the entries that keep their place, then -1 in unused slots.
        into: (B, K, S) int64 slot or -1; None = pure eviction.
        weight: (B, K, S) float32, with `into`.
        count: (B, K) int64 entries really used per head where heads differ; None = M everywhere.
    """

    keep: Tensor
    into: Tensor | None = None
    weight: Tensor | None = None
    count: Tensor | None = None


def apply(reduction: Reduction, x: Tensor) -> Tensor:
    """The slots' features: (B, N, D) -> (B, K, D), summed in float32, in x's dtype. An unused slot is zero."""
    if reduction.into is None:
        index = reduction.anchor.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        kept = x.gather(1, index)
        return kept if reduction.count is None else kept.masked_fill(reduction.anchor.unsqueeze(-1) < 0, 0)
    return (_scattered if reduction.into.shape[-1] <= SCATTERED else _product)(reduction, x)


def apply_flops(n: int, count: int, slots: int, dim: int) -> int:
    """Matrix FLOPs of `apply` on one row of n tokens of `dim` features that each go to `slots` of `count` slots."""
    return 2 * n * count * dim if slots > SCATTERED else 0


def apply_size(reduction: Reduction, size: Tensor) -> Tensor:
    """Original tokens that each slot stands for: (B, N) -> (B, K). A token spread over J slots is shared equally."""
    if reduction.into is None:
        return size.gather(1, reduction.anchor.clamp(min=0)).masked_fill(reduction.anchor < 0, 0)
    b, k = reduction.anchor.shape
    lands = (reduction.into >= 0).float()
    share = size.unsqueeze(-1).float() * lands / lands.sum(-1, keepdim=True).clamp(min=1)
    out = torch.zeros(b, k + 1, device=size.device)  # slot k is the bin
    out.scatter_add_(1, reduction.into.masked_fill(reduction.into < 0, k).flatten(1), share.flatten(1))
    return out[:, :k].to(size.dtype)


def apply_position(reduction: Reduction, position: Tensor) -> Tensor:
    """The slots' places in the grid: (B, N) -> (B, K), those of their anchors; -1 for a slot without a place."""
    return position.gather(1, reduction.anchor.clamp(min=0)).masked_fill(reduction.anchor < 0, -1)


def apply_kv(reduction: KVReduction, entries: Tensor) -> Tensor:
    """The entries that stay, keys or values: (B, K, S, e) -> (B, K, M, e). Slots that a head does not use are zero."""
    b, k, _, e = entries.shape
    rows = Reduction(
        anchor=reduction.keep.flatten(0, 1),
        into=None if reduction.into is None else reduction.into.flatten(0, 1).unsqueeze(-1),
        weight=None if reduction.weight is None else reduction.weight.flatten(0, 1).unsqueeze(-1),
        count=None if reduction.count is None else reduction.count.flatten(0, 1),
    )
    return apply(rows, entries.flatten(0, 1)).view(b, k, -1, e)


def _scattered(reduction: Reduction, x: Tensor) -> Tensor:
    b, n, d = x.shape
    k = reduction.anchor.shape[1]
    into = reduction.into.masked_fill(reduction.into < 0, k)  # (B, N, J), slot k is the bin
    into = into + (k + 1) * torch.arange(b, device=x.device).view(-1, 1, 1)
    out = torch.zeros(b * (k + 1), d, dtype=torch.float32, device=x.device)
    for j in range(into.shape[-1]):  # at most SCATTERED; whole rows, since torch is slow at entries one by one
        out.index_add_(0, into[..., j].flatten(), (reduction.weight[..., j].unsqueeze(-1) * x.float()).flatten(0, 1))
    return out.view(b, k + 1, d)[:, :k].to(x.dtype)


def _product(reduction: Reduction, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    lands = reduction.into >= 0
    weight = torch.zeros(b, reduction.anchor.shape[1], n, device=x.device)
    weight = weight.scatter_add(1, reduction.into.clamp(min=0).mT, reduction.weight.masked_fill(~lands, 0).mT)
    return (weight @ x.float()).to(x.dtype)


def then(first: Reduction, second: Reduction, n: int) -> Reduction:
    """Both in one: `second` reduces the slots of `first`, which reduces n tokens. J is the product of both J."""
    into1, weight1 = _as_sum(first, n)
    into2, weight2 = _as_sum(second, first.anchor.shape[1])
    b, _, j1 = into1.shape
    j2 = into2.shape[-1]
    at = into1.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, j2)  # (B, N * J1, J2)
    into = into2.gather(1, at).view(b, n, j1, j2).masked_fill(into1.unsqueeze(-1) < 0, -1)
    weight = weight2.gather(1, at).view(b, n, j1, j2) * weight1.unsqueeze(-1)
    anchor = apply_position(second, first.anchor)
    return Reduction(anchor, into.flatten(2), weight.flatten(2), second.count, second.grid_out)


def _as_sum(reduction: Reduction, n: int) -> tuple[Tensor, Tensor]:
    """`into` and `weight` of any reduction of n tokens, a pure selection included."""
    if reduction.into is not None:
        return reduction.into, reduction.weight
    b, k = reduction.anchor.shape
    slots = torch.arange(k, device=reduction.anchor.device).expand(b, k)
    into = torch.full((b, n + 1), -1, device=reduction.anchor.device)  # index n: where unused slots write
    into.scatter_(1, reduction.anchor.masked_fill(reduction.anchor < 0, n), slots)
    into = into[:, :n].unsqueeze(-1)
    return into, (into >= 0).float()


def inverse(order: Tensor) -> Tensor:
    """Where each index stands in an order (..., N) of all of them."""
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def in_order(reduction: Reduction) -> Reduction:
    """The same slots sorted by anchor, as they leave a stage; those without a place last, unused ones after them."""
    anchor = reduction.anchor
    order = anchor.masked_fill(anchor < 0, torch.iinfo(anchor.dtype).max).argsort(dim=-1, stable=True)
    anchor = anchor.gather(1, order)
    if reduction.into is None:
        return Reduction(anchor, None, None, reduction.count, reduction.grid_out)
    flat = reduction.into.clamp(min=0).flatten(1)
    into = inverse(order).gather(1, flat).view_as(reduction.into).masked_fill(reduction.into < 0, -1)
    return Reduction(anchor, into, reduction.weight, reduction.count, reduction.grid_out)

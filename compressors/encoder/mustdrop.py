"""MustDrop, first stage: windows of patches that look alike become one token each."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import ranked
from foveate.compressors.matching import rounded
from foveate.compressors.registry import register
from foveate.compressors.tokens import inverse


@register
@dataclass(frozen=True)
class MustDrop(Reducer):
    """Behind the attention of the first block, merge the windows of 3 x 3 patches whose mean cosine is highest.

    Paper:   Liu et al., 2024, https://arxiv.org/abs/2411.10803
    Code:    https://github.com/liuting20/MustDrop
    Formula: a[w] = mean over pairs i != j of window w of cos(x[i], x[j]); the windows of largest a become the mean of
             their tokens by size, nine for one, most alike first, then all other tokens in raster order
    Shapes:  x (B, N, D) -> anchor (B, K), into, weight (B, N, 1)
    Cost:    no matrix product.
    Differs: the code merges every window with a >= .8, as many in each image of a batch as in the one that has
             fewest; here `count` decides, whatever the batch, and `threshold` may merge more. The last window may be
             merged in part, so that every count can be given; windows at the border may be smaller; below one token
             in nine windows grow. CLS and the order of slots are as there, until the host puts them in order.

    Args:
        threshold: windows of at least this a are merged too, even where `count` asks for less; None = none are.
        side: of a window.
    Raises:
        ValueError: `side` is below 2, or `count` is outside 1..N.
    """

    name = "mustdrop"
    stages = ("encoder",)
    adaptive = True
    positions = "renumber"
    requires_grid = True
    paper = "Liu et al., 2024, https://arxiv.org/abs/2411.10803"
    fidelity = "paper"

    threshold: float | None = None
    side: int = 3

    def __post_init__(self) -> None:
        if self.side < 2:
            raise ValueError(f"mustdrop: side {self.side} is below 2")

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(0, count)]

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        b, n, device = *tokens.size.shape, tokens.size.device
        window, inside = (x.to(device) for x in self._windows(tokens.grid, count))  # (N,)
        size = window.bincount()
        alike = self._alike(tokens.x, window, size)
        order = ranked(alike)  # (B, W)
        rank = inverse(order)
        goes = (size - 1)[order]
        due = (n - count) - (goes.cumsum(1) - goes)  # tokens that still have to go when a window's turn comes
        members = (due.clamp(min=0).minimum(goes) + 1).gather(1, rank)  # (B, W) how many of its first tokens merge
        if self.threshold is not None:
            members = torch.where(alike >= self.threshold, size, members)
        members = members[:, window]  # (B, N)
        merged = (members > 1) & (inside < members)
        stands = ~merged | (inside == members // 2)  # the middle token lends its place
        key = torch.where(merged, rank[:, window], len(size) + torch.arange(n, device=device))
        slots = stands.sum(1)
        most = int(slots.max())
        anchor = key.masked_fill(~stands, len(size) + n).argsort(dim=1, stable=True)[:, :most]
        number = (merged & stands).sum(1, keepdim=True)
        into = torch.where(merged, rank[:, window], number + (~merged).cumsum(1) - 1)
        total = torch.zeros(b, most, device=device).scatter_add_(1, into, tokens.size)
        weight = tokens.size / total.gather(1, into)
        unused = torch.arange(most, device=device) >= slots[:, None]
        uneven = bool(unused.any()) or most < count
        return Reduction(
            anchor.masked_fill(unused, -1), into.unsqueeze(-1), weight.unsqueeze(-1), slots if uneven else None
        )

    def _windows(self, grid: Grid, count: int) -> tuple[Tensor, Tensor]:
        """Of each token: its window, and its number among the tokens of that window, both (N,)."""
        (t, h, w), side, time = grid, self.side, 1
        while ceil(t / time) * ceil(h / side) * ceil(w / side) > count:
            side, time = (side + 1, time) if side < max(h, w) else (side, time + 1)
        rows, columns = ceil(h / side), ceil(w / side)
        at = torch.arange(t * h * w)
        frame, row, column = at // (h * w), at % (h * w) // w, at % w
        window = (frame // time * rows + row // side) * columns + column // side
        order = window.argsort(stable=True)
        first = torch.searchsorted(window[order], window[order])
        return window, torch.empty_like(at).scatter_(0, order, at - first)

    @staticmethod
    def _alike(x: Tensor, window: Tensor, size: Tensor) -> Tensor:
        """(B, W) mean cosine of the pairs of each window; -inf where there is no pair."""
        unit = normalize(x.float(), dim=-1)
        total = unit.new_zeros(x.shape[0], len(size), x.shape[-1]).index_add_(1, window, unit)
        own = unit.new_zeros(x.shape[0], len(size)).index_add_(1, window, unit.square().sum(-1))
        pairs = (total.square().sum(-1) - own) / (size * (size - 1)).clamp(min=1)
        return rounded(pairs).masked_fill(size < 2, -torch.inf)

"""Stride: keep tokens at even distances, the control that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from foveate.compressors.base import Grid, Reduction, Tokens
from foveate.compressors.controls import Control
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Stride(Control):
    """Spread `count` points over the grid: frames evenly in time, rows evenly in a frame, columns evenly in each row.

    Paper:   none; the uniform-sampling control of the pruning literature.
    Code:    none.
    Formula: of K points on L places, point i sits at floor((i + 1/2) L / K); a frame of c points has about
             sqrt(c H / W) rows
    Shapes:  grid -> anchor (B, K) int64
    Cost:    no matrix product.
    Differs: nothing known. Tokens that are no longer a whole grid are sampled evenly in their order.

    Args:
        layer: at `prefill`, tokens are gone before this layer, as (number, depth of the paper's model): FastV's place.
    Raises:
        ValueError: `count` is outside 1..N.
    """

    name = "stride"

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        t, h, w = tokens.grid
        kept = spread((t, h, w), count) if tokens.n == t * h * w else even(count, tokens.n)
        anchor = torch.tensor(kept, device=tokens.x.device)
        return Reduction(anchor.expand(tokens.x.shape[0], -1))


def even(points: int, places: int) -> list[int]:
    """`points` of `places` indices at even distances, ascending: the middles of equal parts."""
    return [(2 * i + 1) * places // (2 * points) for i in range(points)]


def shares(total: int, parts: int) -> list[int]:
    """`total` cut into `parts` whole numbers that differ by at most one."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


@lru_cache(maxsize=256)
def spread(grid: Grid, count: int) -> tuple[int, ...]:
    """`count` flat indices of the grid, ascending, spread over frames, rows and columns."""
    t, h, w = grid
    frames = even(min(t, count), t)
    kept: list[int] = []
    for frame, in_frame in zip(frames, shares(count, len(frames)), strict=True):
        wanted = int((in_frame * h / w) ** 0.5 + 0.5)
        number = max(-(-in_frame // w), min(wanted, h, in_frame), 1)  # a row holds at most w
        rows = even(number, h)
        for row, in_row in zip(rows, shares(in_frame, number), strict=True):
            kept += [(frame * h + row) * w + column for column in even(in_row, w)]
    return tuple(kept)

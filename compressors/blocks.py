"""Blocks of neighbouring tokens that become one token each, and cells of any size. Knows tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.compressors.tokens import Grid

Block = tuple[int, int]
"""(rows, columns) of tokens that become one."""


def squares(sides: Sequence[int]) -> tuple[Block, ...]:
    """s x s of each side."""
    return tuple((side, side) for side in sides)


def block_of(blocks: Sequence[Block], n: int, count: int) -> Block | None:
    """The block by which n tokens become so many: the smallest with room for all, None where there is none."""
    enough = [block for block in blocks if block[0] * block[1] * count >= n]
    return min(enough, key=lambda block: block[0] * block[1], default=None)


def block_counts(blocks: Sequence[Block], grid: Grid) -> list[int]:
    """How many tokens blocks make of a grid, ascending; left out where `block_of` would take the count for another's.

    The last blocks of a row or column may stand over the border.
    """
    t, height, width = grid
    made = {(a, b): t * -(-height // a) * -(-width // b) for a, b in blocks}
    return sorted({count for block, count in made.items() if block_of(blocks, t * height * width, count) == block})


def padded(maps: Tensor, block: Block) -> Tensor:
    """(B, C, H, W) with the last row and column repeated until blocks fill it."""
    sides = (-(-n // side) * side for n, side in zip(maps.shape[2:], block, strict=True))
    rows, columns = (
        torch.arange(n, device=maps.device).clamp(max=old - 1) for n, old in zip(sides, maps.shape[2:], strict=True)
    )
    return maps[:, :, rows][..., columns]


def shuffled(maps: Tensor, block: Block) -> Tensor:
    """(B, C, H, W) -> (B, a b C, ceil(H / a), ceil(W / b)): the tokens of a block in raster order, C channels each."""
    (a, b), whole = block, padded(maps, block)
    c, h, w = whole.shape[1], whole.shape[2] // a, whole.shape[3] // b
    return whole.reshape(-1, c, h, a, w, b).permute(0, 3, 5, 1, 2, 4).reshape(-1, a * b * c, h, w)


def places_in_blocks(size: tuple[int, int], block: Block) -> Tensor:
    """(h w, a b) int64, the places of a grid in each block in raster order; -1 = over the border."""
    spans = [[(first, first + side) for first in range(0, n, side)] for n, side in zip(size, block, strict=True)]
    return _crossed([_spans(n, span) for n, span in zip(size, spans, strict=True)], size[1])


def places_in_cells(size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """(h w, k) int64, the places that each cell of adaptive pooling covers, in raster order; -1 = no more of them.

    Cell i of h covers rows floor(i H / h) .. ceil((i + 1) H / h) - 1, columns likewise.
    """
    spans = [[(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in zip(size, cells, strict=True)]
    return _crossed([_spans(n, span) for n, span in zip(size, spans, strict=True)], size[1])


def _spans(n: int, spans: Sequence[tuple[int, int]]) -> Tensor:
    """(m, k) the indices from first to last of each span, -1 behind the last and behind n."""
    first, last = torch.tensor(spans).T.unsqueeze(-1)
    index = first + torch.arange(int((last - first).max()))
    return index.masked_fill((index >= last) | (index >= n), -1)


def _crossed(axes: Sequence[Tensor], width: int) -> Tensor:
    """Flat places where spans of rows (h, k) and of columns (w, l) meet: (h w, k l)."""
    row, column = axes[0][:, None, :, None], axes[1][None, :, None, :]
    flat = (row * width + column).masked_fill((row < 0) | (column < 0), -1)
    return flat.flatten(2).flatten(0, 1)

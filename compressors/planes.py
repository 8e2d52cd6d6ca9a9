"""Tokens of a whole grid as planes of channels, and planes as tokens of a smaller grid. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.grids import largest, shrunk
from foveate.compressors.tokens import Grid, Resampled, Tokens


def counts(grid: Grid) -> list[int]:
    """The counts of all grids that have the frames of this one and the shape of its frames, ascending."""
    t, height, width = grid
    return [t * h * w for h, w in shrunk(height, width)]


def side(grid: Grid, count: int) -> tuple[int, int]:
    """Rows and columns of each frame of the one with this count."""
    t, height, width = grid
    return largest(height, width, count // t)


def check_whole(name: str, tokens: Tokens) -> None:
    """Raises: ValueError where tokens are not a whole grid."""
    t, height, width = tokens.grid
    if tokens.n != t * height * width:
        raise ValueError(f"{name}: {tokens.n} tokens are not a whole {t} x {height} x {width} grid")


def check_one_frame(name: str, tokens: Tokens) -> None:
    """Raises: ValueError where tokens are of several frames."""
    if tokens.grid[0] > 1:
        raise ValueError(f"{name}: takes one frame, got {tokens.grid[0]}")


def planes(name: str, tokens: Tokens) -> Tensor:
    """(B T, D, H, W) float32. Raises: ValueError where tokens are not a whole grid."""
    check_whole(name, tokens)
    t, height, width = tokens.grid
    return tokens.x.float().view(-1, height, width, tokens.x.shape[-1]).permute(0, 3, 1, 2)


def raster(maps: Tensor, tokens: Tokens) -> Resampled:
    """Planes (B t, D, h, w) as tokens in raster order; each takes the place nearest to the middle of its cell.

    Args:
        maps: frame by frame.
        tokens: what they were made of; D may differ.
    """
    b = tokens.x.shape[0]
    grid = (maps.shape[0] // b, *maps.shape[2:])
    frame, row, column = (middles(new, old, maps.device) for new, old in zip(grid, tokens.grid, strict=True))
    _, height, width = tokens.grid
    position = (frame.view(-1, 1, 1) * height + row.view(-1, 1)) * width + column
    x = maps.permute(0, 2, 3, 1).reshape(b, -1, maps.shape[1])
    return Resampled(x.to(tokens.x.dtype), position.flatten().expand(b, -1), grid)


def placeless(x: Tensor) -> Resampled:
    """New tokens (B, M, D) that stand nowhere in the grid."""
    return Resampled(x, torch.full(x.shape[:2], -1, device=x.device))


def standing(x: Tensor, place: Tensor, lattice: tuple[int, int], tokens: Tokens) -> Resampled:
    """New tokens (B, M, D), the m-th of which stands at place m (M,) of a lattice, in raster order of these places;
    each takes the position there in the one frame that they were made of."""
    order = place.argsort(stable=True)
    row, column = (middles(new, old, place.device) for new, old in zip(lattice, tokens.grid[1:], strict=True))
    position = row[place // lattice[1]] * tokens.grid[2] + column[place % lattice[1]]
    return Resampled(x[:, order], position[order].expand(len(x), -1))


def middles(cells: int, length: int, device: torch.device) -> Tensor:
    """The index nearest to the middle of each of equal cells; of two, the lower."""
    return -(-(2 * torch.arange(cells, device=device) + 1) * length // (2 * cells)) - 1

"""Dense places among points, and the centres that lie apart from each other. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.choosing import rank, some

HALVINGS = 12


def densities(distance: Tensor) -> Tensor:
    """How crowded it is around each point: (B, R, R) distances -> (B, R) sum over all points of exp(-(d / 2)^2)."""
    return torch.exp(-((distance / 2) ** 2)).sum(dim=-1)


def centres(distance: Tensor, density: Tensor, cutoff: Tensor) -> Tensor:
    """The points that, by falling density, lie farther than `cutoff` from every centre so far.

    All points of which no denser one near is undecided are decided at once, so the rounds are few.

    Args:
        distance: (B, R, R).
        density: (B, R); equal ones go to the lower index.
        cutoff: (B,) per row; below 0 every point is a centre.
    Returns:
        (B, R) bool.
    """
    place = rank(density)
    denser = place.unsqueeze(1) < place.unsqueeze(2)  # [i, j]: j comes before i
    hinders = denser & (distance <= cutoff.view(-1, 1, 1))
    is_centre = torch.zeros_like(density, dtype=torch.bool)
    open_ = torch.ones_like(is_centre)
    while bool(open_.any()):
        is_centre = is_centre | (open_ & ~some(hinders & open_.unsqueeze(1)))
        open_ = open_ & ~is_centre & ~some(hinders & is_centre.unsqueeze(1))
    return is_centre


def reach(distance: Tensor, density: Tensor, count: int) -> Tensor:
    """A cutoff at which there are `count` centres, or not many more: (B,), below 0 where nothing else gives so many.

    Found by halving. The number of centres falls with the cutoff, though not at every step: it is never below `count`.
    """
    low, high = torch.full_like(density[:, 0], -1e-3), distance.flatten(1).amax(dim=-1)
    found = torch.zeros_like(low, dtype=torch.bool)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        number = centres(distance, density, middle).sum(dim=-1)
        enough = number >= count
        low, high = torch.where(enough & ~found, middle, low), torch.where(enough | found, high, middle)
        found |= number == count
        if bool(found.all()):
            break
    return low

"""Shares of a whole number: how many tokens each part of a picture gets. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.choosing import rank


def shares(weight: Tensor, total: Tensor, heaviest: bool = False) -> Tensor:
    """Splits `total` in proportion to `weight`: whole parts first, what is left over one each.

    Args:
        weight: (B, C) at least 0; where a row is all zero its parts are equal.
        total: (B,) int64.
        heaviest: the left-over goes to the largest weights; else to the largest remainders. Ties: the lower index.
    Returns:
        (B, C) int64 that sum to `total`.
    """
    weight = weight.double()
    weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, torch.ones_like(weight))
    exact = weight / weight.sum(-1, keepdim=True) * total.unsqueeze(-1)
    whole = (exact + 1e-9).floor()  # 1.9999999 is a 2
    key = weight if heaviest else exact - whole
    more = rank(key.masked_fill(weight == 0, -torch.inf)) < (total - whole.sum(-1)).unsqueeze(-1)
    return (whole + more).long()


def capped(weight: Tensor, room: Tensor, total: Tensor, heaviest: bool = False) -> Tensor:
    """`shares` of which none exceeds its room: what overflows is split again, by weight times the room that is left.

    Args:
        weight: (B, C) at least 0.
        room: (B, C) int64; a part without room gets nothing.
        total: (B,) int64, at most the sum of the row's room.
        heaviest: see `shares`.
    Returns:
        (B, C) int64 that sum to `total`.
    """
    weight = weight.double().masked_fill(room == 0, 0)
    given = shares(torch.where((weight > 0).any(-1, keepdim=True), weight, room.double()), total, heaviest)
    while bool((given > room).any()):
        given = given.minimum(room)
        left = (room - given).double()
        pull = weight * left
        pull = torch.where((pull > 0).any(-1, keepdim=True), pull, left)
        given = given + shares(pull, total - given.sum(-1), heaviest)
    return given


def one_each(share: Tensor, room: Tensor, count: int) -> Tensor:
    """Whole parts that add up to `count`: one for each with room, the rest by what its share exceeds that.

    Args:
        share: (B, C) of each part; those with room add up to 1.
        room: (B, C) int64; with more parts than `count`, those with the largest shares get one.
        count: of all together; where there is less room, all of it.
    """
    one = (room > 0) & (rank(share.masked_fill(room == 0, -1)) < count)
    rest = (share * count - 1).clamp(min=0) * one
    return one + capped(rest, room - one.long(), room.sum(dim=-1).clamp(max=count) - one.sum(dim=-1))

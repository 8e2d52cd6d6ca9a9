"""Entries of heads that keep different numbers, stored without padding."""

from __future__ import annotations

import torch
from torch import Tensor


def exists(lengths: Tensor, longest: int) -> Tensor:
    """(..., longest) bool from lengths (...): there is such an entry."""
    return torch.arange(longest, device=lengths.device) < lengths[..., None]


def packed(x: Tensor, heads: Tensor) -> Tensor:
    """The first `heads` (B, K) entries of x (B, K, S, e), row by row, head by head: (T, e) in memory of its own."""
    return x[exists(heads, x.shape[2])]


def unpacked(x: Tensor, heads: Tensor) -> Tensor:
    """The inverse of `packed`, zero where a head has no entry: (B, K, longest, e)."""
    there = exists(heads, int(heads.max()))
    out = x.new_zeros(*there.shape, x.shape[-1])
    out[there] = x
    return out

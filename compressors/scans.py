"""Selective scans: states that remember what a line of tokens told, each at its own pace. Knows tensors only."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import pad

PIECE = 2**25
"""Numbers of state that are held at once, where channels allow; 128 MiB."""


def scanned(step: Tensor, speed: Tensor, into: Tensor, out: Tensor, x: Tensor) -> Tensor:
    """y[t] = h[t] out[t] with h[t] = exp(step[t] speed) h[t - 1] + step[t] x[t] into[t] and h[-1] = 0.

    Args:
        step: (B, L, E), above 0.
        speed: (E, S), below 0.
        into: (B, L, S), and
        out: (B, L, S).
        x: (B, L, E).
    Returns:
        (B, L, E) float32.
    """
    step, speed, into, out, x = (value.float() for value in (step, speed, into, out, x))
    least = -(-x.numel() * speed.shape[1] // PIECE)  # channels know nothing of each other
    parts = zip(*(value.tensor_split(least, dim) for value, dim in ((step, 2), (speed, 0), (x, 2))), strict=True)
    out = out.unsqueeze(-1)
    return torch.cat([(states(*part, into) @ out).squeeze(-1) for part in parts], dim=-1)


def states(step: Tensor, speed: Tensor, x: Tensor, into: Tensor) -> Tensor:
    """h of `scanned`: (B, L, E, S).

    The line is cut into chunks of about as many tokens as there are chunks. All chunks go forward together from
    nothing; then what each leaves goes on from chunk to chunk. No factor is above 1, so nothing can overflow.
    """
    length = x.shape[1]
    chunk = max(1, isqrt(length))
    more = -length % chunk  # steps of 0 change nothing
    step, into, x = (pad(value, (0, 0, 0, more)).unflatten(1, (-1, chunk)) for value in (step, into, x))
    decay = (step.unsqueeze(-1) * speed).exp().unbind(2)  # of each place in a chunk: (B, chunks, E, S)
    given = ((step * x).unsqueeze(-1) * into.unsqueeze(-2)).unbind(2)
    own = [given[0]]
    for factor, new in zip(decay[1:], given[1:], strict=True):
        own.append(factor * own[-1] + new)
    since = (step.cumsum(2).unsqueeze(-1) * speed).exp()  # the chunk's start: (B, chunks, chunk, E, S)
    left = [torch.zeros_like(own[0][:, 0])]
    for factor, new in zip(since[:, :-1, -1].unbind(1), own[-1][:, :-1].unbind(1), strict=True):
        left.append(factor * left[-1] + new)
    whole = torch.stack(own, dim=2) + since * torch.stack(left, dim=1).unsqueeze(2)
    return whole.flatten(1, 2)[:, :length]

"""Entropic optimal transport in the log domain: how much of each target comes from each source. Knows tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def targets_alone(cost: Tensor, epsilon: float) -> Tensor:
    """The plan that serves every target with 1 / M, sources free: (B, N, M) costs -> (B, N, M).

    Columns are softmaxes: one step, exact.
    """
    return (-cost / epsilon).softmax(dim=1) / cost.shape[2]


def balanced(cost: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Sinkhorn's plan with equal shares for all sources and for all targets, which are served last: (B, N, M)."""
    _, n, m = cost.shape
    log = -cost / epsilon
    for _ in range(rounds):
        log = log - log.logsumexp(dim=2, keepdim=True) - math.log(n)
        log = log - log.logsumexp(dim=1, keepdim=True) - math.log(m)
    return log.exp()


def ranged(x: Tensor) -> Tensor:
    """Each row of x (B, ...) brought to 0 .. 1; a row of equal values is 0."""
    flat = x.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=torch.finfo(flat.dtype).tiny)).view_as(x)

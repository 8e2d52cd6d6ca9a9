"""Bipartite matching by cosine: who merges into whom. Knows tensors only, no model and no stage."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.tokens import Reduction, apply, apply_size, then

STEP = 2.0**-20


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs in float32: (..., N, d) and (..., M, d) -> (..., N, M); a zero vector has cosine 0.

    Rounded to 2^-20, so that equal pairs tie exactly, whatever order a matrix kernel sums in.
    """
    return rounded(normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).transpose(-1, -2))


def cosine_to(x: Tensor, vector: Tensor) -> Tensor:
    """The same of each token with one vector, or with one of its own, without a matrix product.

    Args:
        x: (B, N, d).
        vector: (B, 1, d) or (B, N, d).
    Returns:
        (B, N) float32.
    """
    return rounded((normalize(x.float(), dim=-1) * normalize(vector.float(), dim=-1)).sum(dim=-1))


def rounded(x: Tensor) -> Tensor:
    """x to the next multiple of 2^-20."""
    return (x * (1 / STEP)).round_().mul_(STEP)  # both products are exact; in place, for the sake of large matrices


def bipartite(metric: Tensor, size: Tensor, r: int) -> Reduction:
    """Merges the r tokens at even indices that are most like one at an odd index into that one.

    Args:
        metric: (B, N, d) what similarity is measured on.
        size: (B, N) float32 original tokens each stands for: the weights of the mean.
        r: how many tokens go, 1 .. N // 2.

    Returns:
        Slots in the order [even indices that stay, ascending; odd indices], each anchored at its own token.
    """
    n = metric.shape[1]
    best, partner = cosine(metric[:, ::2], metric[:, 1::2]).max(dim=-1)  # (B, N_even); ties: the lower index
    return mean_by_size(*sent(best, partner, n, r), size)


def mean_by_size(anchor: Tensor, into: Tensor, size: Tensor) -> Reduction:
    """Slots (B, K) that are means by size (B, N) of the tokens that go into them (B, N)."""
    total = torch.zeros(anchor.shape, device=size.device).scatter_add_(1, into, size)
    return Reduction(anchor, into.unsqueeze(-1), (size / total.gather(1, into)).unsqueeze(-1))


def sent(best: Tensor, partner: Tensor, n: int, r: int) -> tuple[Tensor, Tensor]:
    """The r even ones of n that have the best partners go to these.

    Args:
        best: (B, n_even) how good each one's partner is; of equal ones the lower goes first.
        partner: (B, n_even) int64 its number among the odd ones.
        n: of even and odd ones together.
        r: how many go.
    Returns:
        (B, n - r) int64 who is left: even ones that stay, ascending, then odd ones; (B, n) int64 where each is now.
    """
    b, device = best.shape[0], best.device
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, stay = order[:, :r], order[:, r:].sort(dim=-1).values
    anchor = torch.cat([2 * stay, torch.arange(1, n, 2, device=device).expand(b, -1)], dim=1)  # (B, n - r)
    slot = torch.empty(b, n, dtype=torch.int64, device=device)
    slot.scatter_(1, anchor, torch.arange(n - r, device=device).expand(b, -1))
    return anchor, slot.scatter_(1, 2 * source, stay.shape[1] + partner.gather(1, source))


def needs_width(name: str, key_dim: int) -> None:
    """Raises: ValueError where the host left out how wide keys are, since its ledger would then miss these products."""
    if key_dim < 1:
        raise ValueError(f"{name}: flops needs key_dim, the width of the `keys` signal, got {key_dim}")


def rounds(n: int, count: int) -> list[int]:
    """Tokens merged away in each round, where a round can at most halve: from n down to `count`."""
    merged = []
    while n > count:
        merged.append(min(n // 2, n - count))
        n -= merged[-1]
    return merged


def merge_down(metric: Tensor, size: Tensor, count: int) -> Reduction:
    """As many rounds of `bipartite` as it takes to reach `count`, as one reduction; metrics are averaged along."""
    b, n, _ = metric.shape
    whole = Reduction(torch.arange(n, device=metric.device).expand(b, -1))
    for r in rounds(n, count):
        step = bipartite(metric, size, r)
        metric, size, whole = apply(step, metric.float()), apply_size(step, size), then(whole, step, n)
    return whole


def merge_flops(n: int, count: int, key_dim: int) -> int:
    """Matrix FLOPs of `merge_down` on one row: the similarities of each round. Raises: see `needs_width`."""
    needs_width("tome", key_dim)
    flops = 0
    for r in rounds(n, count):
        flops += 2 * ((n + 1) // 2) * (n // 2) * key_dim
        n -= r
    return flops

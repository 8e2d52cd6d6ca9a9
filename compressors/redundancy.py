"""SAINT's graphs of alike tokens: who has many near twins, and whom a set can spare. Knows tensors only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.choosing import rank, selection
from foveate.compressors.matching import cosine
from foveate.compressors.tokens import Reduction


@dataclass(frozen=True)
class Votes:
    """The vote on the bipartite graph of tokens at even and odd places.

    Args:
        threshold: cosine from which two tokens are joined.
        degree: joined tokens from which a token may go.
        gamma: weight of likeness against number.
    """

    threshold: float
    degree: int
    gamma: float

    def __call__(self, likeness: Tensor) -> tuple[Tensor, Tensor]:
        """From cosines (B, N, N): how many tokens of each row may go, (B,); a score (B, N), -inf at odd places."""
        b, n, _ = likeness.shape
        pairs = likeness[:, ::2, 1::2]
        joined = pairs >= self.threshold
        number = joined.sum(dim=-1)  # (B, N_even)
        mean = (pairs * joined).sum(dim=-1) / number.clamp(min=1)
        strong = number * torch.exp(self.gamma * (mean - self.threshold))
        score = torch.full((b, n), -torch.inf, device=likeness.device)
        score[:, ::2] = torch.where(number > 0, strong, pairs.sum(dim=-1) / max(1, n // 2))
        return (number >= self.degree).sum(dim=-1), score


def crowded(likeness: Tensor, alive: Tensor, count: Tensor, divisor: int) -> Tensor:
    """Thins a set from where it is thickest: rounds remove those most like all that are left, themselves included.

    Args:
        likeness: (B, N, N) cosines.
        alive: (B, N) bool, the tokens to begin with.
        count: (B,) how many to end with.
        divisor: a round removes one of so many, at least one.
    Returns:
        (B, N) bool, the tokens that are left.
    """
    while True:
        left = alive.sum(dim=-1)
        removed = (left - count).clamp(min=0).minimum((left // divisor).clamp(min=1))
        if not bool(removed.any()):
            return alive
        score = (likeness * alive.unsqueeze(1)).sum(dim=-1).masked_fill(~alive, -torch.inf)
        alive = alive & (rank(score) >= removed.unsqueeze(-1))


def thinned(keys: Tensor, count: int, votes: Votes | None, divisor: int, clip: bool) -> Reduction:
    """What SAINT keeps of tokens with these keys (B, N, d).

    Args:
        keys: what likeness is measured on.
        count: tokens to keep, at most.
        votes: the vote; None = the full graph alone.
        divisor: see `crowded`.
        clip: the vote removes no more than the count asks for.
    """
    likeness = cosine(keys, keys)
    alive = torch.ones(likeness.shape[:2], dtype=torch.bool, device=keys.device)
    if votes is not None:
        may_go, score = votes(likeness)
        goes = may_go.clamp(max=keys.shape[1] - count) if clip else may_go
        alive = rank(score) >= goes.unsqueeze(-1)
    return selection(crowded(likeness, alive, torch.full_like(alive.sum(-1), count), divisor))

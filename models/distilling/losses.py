"""What a learned compressor is taught: tokens like the host's own, and answers like those behind all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.compressors.base import Grid
from foveate.compressors.networks import Attention, heads_of, stretched
from foveate.models.visual import VisualState, groups

NORM = 0.1
"""Weight of the squared difference between the root mean squares of new and old tokens."""


class Reconstructor(nn.Module):
    """Makes all tokens again from the few: learned places attend to them once, then a linear map. Thrown away at last.

    Args:
        grid: of a usual view; the places are stretched to that of another.
        width: D of the decoder's tokens.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.size = (grid[1], grid[2])
        self.places = nn.Parameter(torch.randn(grid[1] * grid[2], width) * 0.02)
        self.attention, self.out = Attention(width, heads_of(width)), nn.Linear(width, width)

    def forward(self, y: Tensor, grid: Grid) -> Tensor:
        """(B, M, D) -> (B, T H W, D)."""
        places = stretched(self.places, self.size, (grid[1], grid[2])).repeat(grid[0], 1)
        return self.out(self.attention(places.expand(len(y), -1, -1), y, y))


def feature_loss(
    student: Sequence[VisualState],
    teacher: Sequence[VisualState],
    reconstructor: Reconstructor | None,
    standing: bool = False,
) -> Tensor:
    """How far new tokens are from the host's own, mean over views.

    New tokens that form a grid are held against the old ones, pooled to it: mean(1 - cos) + mean square / variance; new
    ones that each have a place, against the means of the old ones that are nearest to it. Others against nothing: the
    old tokens are made again from them, mean square / variance. In all cases plus `NORM` * (difference of the root mean
    squares)^2.

    Args:
        student: views behind the projector, with the method.
        teacher: the same views without.
        reconstructor: for tokens that form no grid.
        standing: the method makes new tokens, so that places are theirs and not those of tokens that were kept.
    """
    keys = [
        (new.n, new.grid if new.whole else None, old.n, old.grid, standing and bool((new.position >= 0).all()))
        for new, old in zip(student, teacher, strict=True)
    ]
    total = torch.zeros((), device=student[0].x.device)
    for (_, made, _, grid, placed), members in groups(keys):
        y, z = (torch.stack([states[i].x for i in members]).float() for states in (student, teacher))
        loss = NORM * (_rms(y) - _rms(z)) ** 2
        if made is None and not placed:
            loss = loss + _square(reconstructor(y, grid), z)
        else:
            at = torch.stack([student[i].position for i in members])
            target = _nearest(z, grid, at) if made is None else _pooled(z, grid, made)
            loss = loss + (1 - F.cosine_similarity(y, target, dim=-1)).mean() + _square(y, target)
        total = total + loss * len(members)
    return total / len(student)


def answer_losses(student: Tensor, teacher: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of the student from the teacher, and the share of equal arg-maxima.

    Both are means over the positions of the answers, the end of each included.

    Args:
        student: (R, 1 + Q, V) logits.
        teacher: the same, behind all tokens.
        length: (R,) tokens of each answer, its end not counted.
    """
    inside = torch.arange(student.shape[1], device=student.device)[None] <= length[:, None]
    mine, theirs = student[inside].log_softmax(-1), teacher[inside].log_softmax(-1)
    same = (mine.argmax(-1) == theirs.argmax(-1)).float().mean()
    return F.kl_div(mine, theirs, log_target=True, reduction="sum") / len(mine), same


def _pooled(x: Tensor, old: Grid, new: Grid) -> Tensor:
    """(B, T H W, D) averaged over the cells of a coarser grid: (B, t h w, D)."""
    maps = x.unflatten(1, old).movedim(-1, 1)  # (B, D, T, H, W)
    return F.adaptive_avg_pool3d(maps, new).flatten(2).transpose(1, 2)


def _nearest(x: Tensor, grid: Grid, at: Tensor) -> Tensor:
    """Means (B, M, D) of the tokens of a whole grid (B, N, D) that are nearest to each of the places (B, M), of equally
    near ones the first; where another place takes them all, the token there."""
    place = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in grid)).float()  # (N, 3)
    owner = torch.cdist(place.expand(len(x), -1, -1), place[at]).argmin(-1)  # (B, N)
    own = F.one_hot(owner, at.shape[1]).to(x)  # (B, N, M)
    many = own.sum(1).unsqueeze(-1)
    there = x.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return torch.where(many > 0, own.mT @ x / many.clamp(min=1), there)


def _square(y: Tensor, z: Tensor) -> Tensor:
    """Mean squared difference, in units of the variance of what is wanted."""
    return (y - z).square().mean() / z.var().clamp(min=1e-12)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()

"""Chat-UniVi: frames become events, and each event tokens on three levels, from fine to coarse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens, apply, then
from foveate.compressors.clusters import means
from foveate.compressors.dpc_knn import clustered, unit_scale
from foveate.compressors.dpc_knn import flops as cluster_flops
from foveate.compressors.planes import check_whole
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class ChatUniVi(Reducer):
    """Cluster frames to events by their means, tokens within each frame to three levels, and these within each event.

    Paper:   Jin et al., CVPR 2024, https://arxiv.org/abs/2311.08046
    Code:    https://github.com/PKU-YuanGroup/Chat-UniVi, ChatUniVi/model/cluster.py and arch.py
    Formula: DPC-KNN of each frame to c0 tokens, of these to c1, of these to c2, each the mean of its cluster; then of
             the tokens of each level in all frames of an event to as many again; c0 : c1 : c2 = 4 : 2 : 1
    Shapes:  x (B, T N, C) -> into, weight (B, T N, 3)
    Cost:    2 C T (N^2 + c0^2 + c1^2) FLOPs; 2 C E T^2 (c0^2 + c1^2 + c2^2) on top with E events of several frames, and
             2 C T^2 for their frames where E is not 1
    Differs: the code makes 64, 32 and 16 tokens of 256, and T / 16 events; here the count is shared by the events, and
             there are more of them where T / 16 cannot take it: an event has at most 7 N / 4 tokens. The code adds
             noise to densities, here the lower index is the denser one. The fine level stands at its centres' places,
             the others have none and come behind it; in the code events follow each other. Its projector was trained
             with this, a host's was not.

    Args:
        frames: to an event, on average.
        neighbours: of the density: for frames and the fine level, the middle one, the coarse one; see `nearest`.
        unit: cluster features at mean square 1 in each row. The density exp(-d^2) depends on how large they are: where
            they are far larger than those it was made for, all that is unlike its surroundings has density 0 and no
            centre. False = as they are, as published.
    Raises:
        ValueError: `frames` or one of the three `neighbours` is below 1, tokens are not a whole grid, or `count` is
            outside 1..N.
    """

    name = "chat_univi"
    stages = ("outside",)
    adaptive = True
    positions = "renumber"
    requires_grid = True
    paper = "Jin et al., CVPR 2024, https://arxiv.org/abs/2311.08046"
    fidelity = "reference"

    frames: int = 16
    neighbours: tuple[int, int, int] = (5, 3, 3)
    unit: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or len(self.neighbours) != 3 or min(self.neighbours) < 1:
            raise ValueError(
                f"chat_univi: frames {self.frames} and three neighbours {self.neighbours} must be at least 1"
            )

    def events(self, grid: Grid, count: int) -> int:
        """How many events share the count."""
        t, n = grid[0], grid[1] * grid[2]
        usual = t if t <= 2 else -(-t // self.frames)
        return min(t, count, max(usual, -(-count // (7 * n // 4))))

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        check_whole(self.name, tokens)
        (t, h, w), (b, n, c), device = tokens.grid, tokens.x.shape, tokens.x.device
        number, x = self.events(tokens.grid, count), self.points(tokens)
        event = self.event_of(x.view(b, t, h * w, c).mean(dim=2), number)
        found, inside = [], Reduction(torch.arange(n, device=device).expand(b, n))
        for level, neighbours in zip(levels(count // number, h * w), self.neighbours, strict=True):
            if not level:
                continue
            inside = then(inside, self.clusters(apply(inside, x), t, level, neighbours), n)
            across = inside
            if number < t:
                across = self.across(apply(inside, x), event, number, level, neighbours)
                across = then(inside, across, n)
            found.append(across)
        return side_by_side(found)

    def points(self, tokens: Tokens) -> Tensor:
        """(B, T N, C) float32, what is clustered."""
        return unit_scale(tokens.x) if self.unit else tokens.x.float()

    def event_of(self, frame: Tensor, number: int) -> Tensor:
        """The event of each frame (B, T, C), numbered by their first frames: (B, T) int64."""
        b, t, _ = frame.shape
        index = torch.arange(t, device=frame.device).expand(b, t)
        if number == t:
            return index
        if number == 1:
            return torch.zeros_like(index)
        alive = torch.ones_like(index, dtype=torch.bool)
        wanted = torch.full_like(index[:, 0], number)
        _, owner = clustered(frame, alive, wanted, nearest(self.neighbours[0], number))
        first = torch.full_like(index, t).scatter_reduce_(1, owner, index, "amin").gather(1, owner)
        return ((first == index).cumsum(dim=1) - 1).gather(1, first)

    @staticmethod
    def clusters(x: Tensor, frames: int, level: int, neighbours: int) -> Reduction:
        """Tokens (B, T p, C), of each frame as many, to `level` in every frame."""
        b, n, _ = x.shape
        points = x.reshape(b * frames, n // frames, -1)
        alive = torch.ones(points.shape[:2], dtype=torch.bool, device=x.device)
        wanted = torch.full((len(points),), level, device=x.device)
        centre, owner = clustered(points, alive, wanted, nearest(neighbours, level))
        first = torch.arange(frames, device=x.device).repeat_interleave(n // frames) * (n // frames)
        return means(centre.view(b, n), owner.view(b, n) + first, torch.ones(b, n, device=x.device))

    @staticmethod
    def across(x: Tensor, event: Tensor, number: int, level: int, neighbours: int) -> Reduction:
        """Tokens (B, T p, C), of each frame as many, to `level` in each event (B, T) of so many."""
        b, n, _ = x.shape
        group = event.repeat_interleave(n // event.shape[1], dim=1)
        member = group.unsqueeze(1) == torch.arange(number, device=x.device).view(-1, 1)  # (B, E, T p)
        points = x.unsqueeze(1).expand(-1, number, -1, -1).flatten(0, 1)
        wanted = torch.full((len(points),), level, device=x.device)
        centre, owner = clustered(points, member.flatten(0, 1), wanted, nearest(neighbours, level))
        stands, owner = centre.view(b, number, n).any(dim=1), owner.view(b, number, n).amax(dim=1)
        return means(stands, owner, torch.ones(b, n, device=x.device))

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        t, number = grid[0], self.events(grid, count)
        points, total = n // t, cluster_flops(1, t, dim) if 1 < number < t else 0
        for level in filter(None, levels(count // number, points)):
            total += cluster_flops(t, points, dim) + (cluster_flops(number, t * level, dim) if number < t else 0)
            points = level
        return total


def levels(count: int, n: int) -> tuple[int, int, int]:
    """Tokens of the fine, the middle and the coarse level of an event: 4 : 2 : 1, the fine one at most n."""
    coarse, fine = count // 7, min(n, count - 2 * count // 7 - count // 7)
    return fine, count - coarse - fine, coarse


def nearest(neighbours: int, count: int) -> int:
    """As many, or fewer where there are fewer clusters: then half of these, at most 3."""
    return neighbours if neighbours <= count else min(3, max(count // 2, 1))


def side_by_side(parts: list[Reduction]) -> Reduction:
    """Several reductions of the same tokens as one; only the slots of the first have a place."""
    first, *more = parts
    offset, into = first.anchor.shape[1], [first.into]
    for part in more:
        into.append(torch.where(part.into < 0, -1, part.into + offset))
        offset += part.anchor.shape[1]
    anchor = torch.cat([first.anchor, *(torch.full_like(part.anchor, -1) for part in more)], dim=1)
    return replace(first, anchor=anchor, into=torch.cat(into, -1), weight=torch.cat([p.weight for p in parts], -1))

"""PruneVid, before the decoder: scenes, places that stand still in them, and clusters of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.clusters import means, summed
from foveate.compressors.dpc_knn import clustered, unit_scale
from foveate.compressors.dpc_knn import flops as cluster_flops
from foveate.compressors.frames_apart import frames_of
from foveate.compressors.matching import rounded
from foveate.compressors.quotas import one_each
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class PruneVid(Reducer):
    """Cut the clip into scenes by clusters of frames; average still places over a scene; merge what is alike.

    Paper:   Huang et al., ACL 2025, https://arxiv.org/abs/2412.16117
    Code:    https://github.com/Visual-AI/PruneVid (non-commercial licence; this is written from a description)
    Formula: frames cluster by their means, DPC-KNN, to floor(T / 4); of each cluster its longest run is held, the rest
             goes to the longer run beside it: scenes of w frames. Place p is still in a scene where mean_{i != j}
             cos(x[i, p], x[j, p]) > tau: one token for all w frames. DPC-KNN merges the n still places of a scene, and
             the n others of each frame, to floor(c n) where n > 14
    Shapes:  x (B, T N, D) -> into, weight (B, T N, 1)
    Cost:    2 D (T + floor(T / 2)) N^2 FLOPs, and 2 D T^2 for the frames from 8 on
    Differs: c follows from the count here: the same share of each group, one token at least while there are as many;
             with `cluster` it is the code's, 14 included, and the count a ceiling. Less than one for each group drops
             the smallest. A token stands at its cluster's centre, a still one in its scene's first frame, and order is
             that of places; there still ones lead a scene, by rank of clusters. No noise breaks ties of density.

    Args:
        scenes: clusters of frames as a part of the frames, at least one.
        tau: mean cosine above which a place is still.
        cluster: c, 0.5 in the code; None = as it takes for `count`.
        small: with `cluster`, groups of up to so many are not merged.
        neighbours: k of the density.
        unit: cluster features at mean square 1 in each row. The density exp(-d^2) depends on how large they are: where
            they are far larger than those it was made for, all that is unlike its surroundings has density 0 and no
            centre. False = as they are, as published.
    Raises:
        ValueError: `scenes` or `cluster` is outside (0, 1], `small` is below 0, `neighbours` is below 1, tokens are not
            a whole grid, or `count` is outside 1..N.
    """

    name = "prunevid"
    stages = ("projector",)
    modality = "video"
    adaptive = True
    positions = "renumber"
    requires_grid = True
    paper = "Huang et al., ACL 2025, https://arxiv.org/abs/2412.16117"
    fidelity = "paper"

    scenes: float = 0.25
    tau: float = 0.8
    cluster: float | None = None
    small: int = 14
    neighbours: int = 7
    unit: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scenes <= 1 or (self.cluster is not None and not 0 < self.cluster <= 1):
            raise ValueError(f"prunevid: scenes {self.scenes} or cluster {self.cluster} is outside (0, 1]")
        if self.small < 0 or self.neighbours < 1:
            raise ValueError(f"prunevid: small {self.small} is below 0 or neighbours {self.neighbours} below 1")

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        x = frames_of(self.name, tokens).float()
        b, t, n, _ = x.shape
        x = unit_scale(tokens.x).view_as(x) if self.unit else x
        scene, index = self.scene_of(x.mean(dim=2)), torch.arange(t, device=x.device).expand(b, t)
        mean, still = stillness(x, scene, most_scenes(t), self.tau)
        is_still = of_frames(still, scene)  # (B, T, N)
        member = torch.cat([still, ~is_still], dim=1)  # groups: still places of each scene, others of each frame
        room = self.merged(member.sum(dim=-1))
        budget = one_each(room / room.sum(dim=-1, keepdim=True), room, count)
        points = torch.cat([mean, x], dim=1).flatten(0, 1)
        _, owner = clustered(points, member.flatten(0, 1), budget.flatten(), self.neighbours)
        of_scene, of_frame = owner.view(b, -1, n).split([most_scenes(t), t], dim=1)
        first = torch.full_like(scene, t).scatter_reduce_(1, scene, index, "amin").gather(1, scene)
        place = torch.where(is_still, of_frames(of_scene, scene), of_frame)
        frame = torch.where(is_still, first.unsqueeze(-1), index.unsqueeze(-1))
        group = (frame * n + place).masked_fill(place < 0, -1).flatten(1)
        return means(group == torch.arange(t * n, device=x.device), group, torch.ones(b, t * n, device=x.device))

    def clusters_of(self, frames: int) -> int:
        """How many clusters frames become."""
        return max(1, int(self.scenes * frames + 1e-9))

    def scene_of(self, frame: Tensor) -> Tensor:
        """The scene of each frame (B, T, D), counted from 0: (B, T) int64."""
        b, t, _ = frame.shape
        number = self.clusters_of(t)
        label = torch.zeros(b, t, dtype=torch.long)
        if number > 1:
            there = torch.ones(b, t, dtype=torch.bool, device=frame.device)
            wanted = torch.full((b,), number, device=frame.device)
            label = clustered(frame, there, wanted, self.neighbours)[1]
        return torch.tensor([scenes_of(row) for row in label.tolist()], device=frame.device)

    def merged(self, members: Tensor) -> Tensor:
        """What groups of so many (int64) may become at most."""
        if self.cluster is None:
            return members
        less = (members * self.cluster + 1e-6).long().clamp(min=1)
        return torch.where(members > self.small, less, members)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        t = grid[0]
        among = cluster_flops(1, t, dim) if self.clusters_of(t) > 1 else 0
        return among + cluster_flops(t + most_scenes(t), n // t, dim)


def most_scenes(frames: int) -> int:
    """How many scenes there can be: each has a run of two frames or is all there is."""
    return max(1, frames // 2)


def scenes_of(label: Sequence[int]) -> list[int]:
    """The scene of each frame, counted from 0, from the cluster of each.

    Of a cluster its longest runs are held, if they have two frames or more. What lies between goes to the longer run
    beside it, of equal ones to the left.
    """
    runs = [(name, len(list(part))) for name, part in groupby(label)]
    longest = {name: max(length for other, length in runs if other == name) for name in set(label)}
    held = [(name if 1 < length == longest[name] else None, length) for name, length in runs]
    parts = [(name, sum(length for _, length in part)) for name, part in groupby(held, key=lambda run: run[0])]
    filled: list[int] = []
    for i, (name, length) in enumerate(parts):
        if name is None:
            beside = parts[max(0, i - 1) : i] + parts[i + 1 : i + 2]
            name = max(beside, key=lambda run: run[1], default=(0, 0))[0]
        filled += [name] * length
    return [number for number, (_, part) in enumerate(groupby(filled)) for _ in part]


def stillness(x: Tensor, scene: Tensor, number: int, tau: float) -> tuple[Tensor, Tensor]:
    """Each place's mean over the frames of a scene (B, S, N, D), and whether it is still there (B, S, N).

    Args:
        x: (B, T, N, D) float32.
        scene: (B, T) of each frame.
        number: S, of scenes that there may be.
        tau: mean cosine of different frames above which a place is still; in a scene of one frame none is.
    """
    length = torch.zeros(len(x), number, device=x.device).scatter_add_(1, scene, torch.ones_like(scene).float())
    length = length.unsqueeze(-1)
    mean = of_scenes(x, scene, number) / length.clamp(min=1).unsqueeze(-1)
    unit = normalize(x, dim=-1)
    own = of_scenes((unit * unit).sum(dim=-1, keepdim=True), scene, number)[..., 0]
    pairs = (of_scenes(unit, scene, number) ** 2).sum(dim=-1) - own  # of each pair twice
    cosine = rounded(pairs / (length * (length - 1)).clamp(min=1))
    return mean, (cosine > tau) & (length > 1)


def of_scenes(x: Tensor, scene: Tensor, number: int) -> Tensor:
    """x (B, T, N, D) added up over the frames of each scene: (B, S, N, D)."""
    return summed(x.flatten(2), scene, number).unflatten(-1, x.shape[2:])


def of_frames(value: Tensor, scene: Tensor) -> Tensor:
    """What each place of a scene has (B, S, N), for each frame of it (B, T, N)."""
    return value.gather(1, scene.unsqueeze(-1).expand(-1, -1, value.shape[-1]))

"""TESTA: merge frames whose patches agree on a partner, then the patches within each frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens, apply, apply_size, then
from foveate.compressors.choosing import ranked
from foveate.compressors.matching import cosine, mean_by_size, merge_down, merge_flops, needs_width, rounds, sent
from foveate.compressors.planes import check_whole
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class TestaOutside(Reducer):
    """ToMe along time, each even frame to the odd frame that most of its patches are like best; then ToMe in each.

    Paper:   Ren et al., Findings of EMNLP 2023, https://arxiv.org/abs/2310.19060
    Code:    https://github.com/RenShuhuai-Andy/TESTA, testa/merge.py and testa/patch/timesformer.py
    Formula: c[l, a, b] = cos(k[a, l], k[b, l]) of even frames a and odd ones b at place l; frame a goes to the mode
             over l of argmax_b c, its score is the mean over l of max_b c; the r best merge, at every l a mean by size.
             Then patches of each frame likewise. t frames of p patches are left: t = T (count / N)^share, t p <= count
    Shapes:  keys (B, N, d), size (B, N) -> into, weight (B, N, 1)
    Cost:    2 (T / 2)^2 L d + 2 t (L / 2)^2 d FLOPs for T frames of L patches in the first round of each, less in
             further ones
    Differs: the paper merges in every block of a tower that attends across frames. Hosts' towers see one frame at a
             time, so both happen behind it, frames first, with the keys of its last block for both; patches alone merge
             inside it in the stage `encoder`. The code's score of a frame is the mode of floating numbers, which is
             any patch's value where all differ. All frames keep equally many patches, which may leave part of the count
             unused. Merged tokens take the place of the odd ones.

    Args:
        share: of the compression that falls on time: 0.26 as 32 frames of 196 patches become 20 of 52.
        vote: the score of a frame, over its patches: "mean", or "mode" as in the code.
    Raises:
        ValueError: `share` is outside [0, 1], `vote` is unknown, tokens are not a whole grid, or `count` is outside
            1..N.
        MissingSignal: the host gave no `keys`.
    """

    name = "testa"
    stages = ("outside",)
    kinds = frozenset({"keys"})
    modality = "video"
    adaptive = True
    positions = "renumber"
    requires_grid = True
    paper = "Ren et al., Findings of EMNLP 2023, https://arxiv.org/abs/2310.19060"
    fidelity = "reconstruction"

    share: float = 0.26
    vote: str = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.vote not in ("mean", "mode"):
            raise ValueError(f"testa: share {self.share} must be in [0, 1], vote {self.vote!r} 'mean' or 'mode'")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("keys", FEATURE_LAYER)})

    def left(self, grid: Grid, count: int) -> tuple[int, int]:
        """Frames and patches of each that are left: the frames by `share`, as many patches as the count has room for,
        and frames again where it has room for more."""
        t, area = grid[0], grid[1] * grid[2]
        frames = min(max(1, round(t * (count / (t * area)) ** self.share)), count, t)
        patches = min(area, count // frames)
        return min(t, count // patches), patches

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        check_whole(self.name, tokens)
        t, (b, n) = tokens.grid[0], tokens.size.shape
        frames, patches = self.left(tokens.grid, count)
        keys, size = tokens.signals["keys"].float(), tokens.size
        whole = Reduction(torch.arange(n, device=size.device).expand(b, n))
        for r in rounds(t, frames):
            step = merged_frames(keys.reshape(b, t, n // tokens.grid[0], -1), size, r, self.vote)
            keys, size, whole, t = apply(step, keys), apply_size(step, size), then(whole, step, n), t - r
        area = n // tokens.grid[0]
        inside = merge_down(keys.reshape(b * t, area, -1), size.reshape(b * t, area), patches)
        return then(whole, in_frames(inside, t, area, size), n)

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        needs_width(self.name, key_dim)
        t, area = grid[0], n // grid[0]
        frames, patches = self.left(grid, count)
        total = frames * merge_flops(area, patches, key_dim)
        for r in rounds(t, frames):
            total += 2 * area * ((t + 1) // 2) * (t // 2) * key_dim
            t -= r
        return total


def merged_frames(keys: Tensor, size: Tensor, r: int, vote: str) -> Reduction:
    """Merges the r even frames with the best partners into odd ones.

    Args:
        keys: (B, T, L, d).
        size: (B, T L) original tokens that each stands for.
        r: 1 .. T // 2.
        vote: see `TestaOutside`.
    Returns:
        Slots frame by frame: even ones that stay, then odd ones.
    """
    b, t, area, _ = keys.shape
    at = keys.transpose(1, 2)  # (B, L, T, d)
    best, partner = cosine(at[:, :, ::2], at[:, :, 1::2]).max(dim=-1)  # (B, L, T_even); ties: the lower frame
    votes = one_hot(partner, t // 2).sum(dim=1)  # (B, T_even, T_odd)
    score = best.mean(dim=1) if vote == "mean" else mode(best.mT)
    frame, slot = sent(score, ranked(votes)[..., 0], t, r)
    place = torch.arange(area, device=keys.device)
    anchor, into = ((index.unsqueeze(-1) * area + place).flatten(1) for index in (frame, slot))
    return mean_by_size(anchor, into, size)


def mode(value: Tensor) -> Tensor:
    """The most frequent entry of the last axis; of equally frequent ones the least."""
    value = value.sort(dim=-1).values
    number = (value.unsqueeze(-1) == value.unsqueeze(-2)).sum(dim=-1)
    return value.gather(-1, ranked(number)[..., :1]).squeeze(-1)


def in_frames(inside: Reduction, frames: int, area: int, size: Tensor) -> Reduction:
    """Reductions of each frame (B frames, area) as one of all of them (B, frames area) with these sizes."""
    patches = inside.anchor.shape[1]
    into = torch.arange(area, device=size.device).expand(len(inside.anchor), -1)
    into = inside.into[..., 0] if inside.into is not None else into
    number = torch.arange(frames, device=size.device).view(-1, 1)
    anchor, into = (
        (index.unflatten(0, (-1, frames)) + number * step).flatten(1)
        for index, step in ((inside.anchor, area), (into, patches))
    )
    return mean_by_size(anchor, into, size)

"""DynTok: in every row of patches, runs of alike neighbours become one token each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import rank
from foveate.compressors.clusters import means
from foveate.compressors.matching import cosine_to
from foveate.compressors.planes import check_whole
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class DynTok(Reducer):
    """Cut the rows of every frame where the encoder's features change most; the projected tokens of a run are averaged.

    Paper:   Zhang et al., 2025, https://arxiv.org/abs/2506.03990
    Code:    none found.
    Formula: s[j] = cos(f[j - 1], f[j]) of neighbours in a row, f before the projector; j begins a run where s[j] is
             among the count - T H lowest of the clip, and not above `threshold`; slot = mean of the run's tokens
    Shapes:  features (B, N, C), x (B, N, D) -> into, weight (B, N, 1)
    Cost:    no matrix product: one inner product for each pair of neighbours.
    Differs: in the paper a threshold alone decides, and so how many tokens there are; here the count does, by the
             threshold that gives it. How a run is merged is inferred. Below one token for each row, whole rows are
             merged by the same rule, on the means of their features, down to one token for each frame.

    Args:
        threshold: cosine above which neighbours are joined even where the count has room: 0.6 in the paper's picture;
            None = the count is met exactly.
    Raises:
        ValueError: tokens are not a whole grid, or `count` is outside T..N.
        MissingSignal: the host gave no `features`.
    """

    name = "dyntok"
    stages = ("projector",)
    kinds = frozenset({"features"})
    adaptive = True
    positions = "renumber"
    requires_grid = True
    paper = "Zhang et al., 2025, https://arxiv.org/abs/2506.03990"
    fidelity = "reconstruction"

    threshold: float | None = None

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("features")})

    def reachable(self, grid: Grid) -> Sequence[int]:
        return range(grid[0], grid[0] * grid[1] * grid[2] + 1)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        check_whole(self.name, tokens)
        t, height, width = tokens.grid
        if count < t:
            raise ValueError(f"dyntok: count {count} is below {t}, one token for each frame")
        b, n, _ = tokens.x.shape
        rows = tokens.signals["features"].float().view(b, t * height, width, -1)
        if count >= t * height:
            begins = self.begins(rows, count)
        else:
            first = torch.arange(width, device=rows.device) == 0
            begins = self.begins(rows.mean(dim=2).view(b, t, height, -1), count).unsqueeze(-1) & first
        begins = begins.view(b, n)
        index = torch.arange(n, device=rows.device)
        run = torch.where(begins, index, 0).cummax(dim=-1).values
        return means(begins, run, torch.ones_like(tokens.size))

    def begins(self, rows: Tensor, count: int) -> Tensor:
        """Which entries of rows (B, R, L, C) begin a run, (B, R, L) bool: the first of each, and at most `count`."""
        b, r, length, _ = rows.shape
        alike = cosine_to(rows[:, :, 1:], rows[:, :, :-1]).view(b, -1)
        cut = rank(-alike) < count - r
        if self.threshold is not None:
            cut &= alike <= self.threshold
        return torch.cat([cut.new_ones(b, r, 1), cut.view(b, r, length - 1)], dim=-1)

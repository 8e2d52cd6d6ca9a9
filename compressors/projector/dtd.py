"""DTD of TimeChat-Online: drop tokens that look like their place one frame before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import rank, selection
from foveate.compressors.frames_apart import apart, frames_of, leading, previous, spread
from foveate.compressors.matching import cosine_to
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class DTD(Reducer):
    """Keep the first frame, and of each later one the same share: the tokens least like their place a frame before.

    Paper:   Yao et al., ACM MM 2025, https://arxiv.org/abs/2504.17343
    Code:    https://github.com/yaolinli/TimeChat-Online
    Formula: s[t, n] = cos(x[t, n], x[t - 1, n]), the frame before taken whole; relative: the count - n tokens behind
             frame 0 are shared equally by frames, the smallest s of each stay; absolute: s > tau goes
    Shapes:  x (B, T n, D) -> anchor (B, K) int64
    Cost:    no matrix product: one inner product a token.
    Differs: what does not divide by frames goes to the first of them. Under `tau` the count is a ceiling, the most
             alike go first. `drift` is an addition, and without pixels at this stage the code's pixel mode is not here.

    Args:
        tau: cosine above which a token is dropped; 0.5 in the demonstration, 0.7 in training. None = relative.
        drift: compare with the last token of the place that was kept, so that slow change adds up; needs `tau`.
    Raises:
        ValueError: tokens are not a whole grid, `drift` without `tau`, or `count` is outside 1..N.
    """

    name = "dtd"
    stages = ("projector",)
    modality = "video"
    adaptive = True
    requires_grid = True
    paper = "Yao et al., ACM MM 2025, https://arxiv.org/abs/2504.17343"
    fidelity = "reference"

    tau: float | None = None
    drift: bool = False

    def __post_init__(self) -> None:
        if self.drift and self.tau is None:
            raise ValueError("dtd: drift = True needs tau, got None")

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, height, width = grid
        return range(height * width, t * height * width + 1)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        x, reference = frames_of(self.name, tokens), previous(tokens.grid[0])
        if self.tau is None:
            distance = apart(x, reference)
            return selection(leading(distance, spread(reference, x.shape[2], count)).flatten(1))
        distance = since_kept(x, self.tau) if self.drift else apart(x, reference)
        distance = distance.flatten(1)
        return selection((rank(distance) < count) & (distance >= 1 - self.tau))


def since_kept(x: Tensor, tau: float) -> Tensor:
    """(B, T, n) as `apart`, from the last token of the place that was no more than tau alike when it came."""
    distance, last = [apart(x[:, :1], previous(1))[:, 0]], x[:, 0]
    for frame in x[:, 1:].unbind(1):
        distance.append(1 - cosine_to(frame, last))
        last = torch.where((distance[-1] >= 1 - tau).unsqueeze(-1), frame, last)
    return torch.stack(distance, dim=1)

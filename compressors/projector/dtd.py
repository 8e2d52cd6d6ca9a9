"""DTD of TimeChat-Online: drop tokens that look like their place one frame before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, Resampled, Streamer, Tokens
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
        distance = since_kept(x, self.tau)[0] if self.drift else apart(x, reference)
        return selection(leaves(distance.flatten(1), self.tau, count))

    def streamed(self) -> DTDStream:
        """The same, window by window."""
        return DTDStream(self.tau, self.drift)


def leaves(distance: Tensor, tau: float, count: int) -> Tensor:
    """(B, N) bool: at most `count` of the tokens that are no more than tau alike, the farthest (B, N) first."""
    return (rank(distance) < count) & (distance >= 1 - tau)


def since_kept(x: Tensor, tau: float, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(B, T, n) as `apart`, from the last token of the place that was no more than tau alike when it came; and that
    token (B, n, D) behind the last frame. `last` is that token before x; None = x is the beginning."""
    distance: list[Tensor] = []
    if last is None:
        distance, last, x = [apart(x[:, :1], previous(1))[:, 0]], x[:, 0], x[:, 1:]
    for frame in x.unbind(1):
        distance.append(1 - cosine_to(frame, last))
        last = torch.where((distance[-1] >= 1 - tau).unsqueeze(-1), frame, last)
    return torch.stack(distance, dim=1), last


@dataclass(frozen=True)
class Kept:
    """What is held of a stream: tokens (1, K, D), their sizes, places and distances (1, K), in order; and one frame.

    Attributes:
        grid: of the stream; T = 0 where its length is not known.
        count: tokens at most.
        frames: that have come.
        last: (1, n, D) what the next frame is compared with; None = nothing has come.
    """

    grid: Grid
    count: int
    x: Tensor | None = None
    size: Tensor | None = None
    position: Tensor | None = None
    distance: Tensor | None = None
    frames: int = 0
    last: Tensor | None = None


@dataclass(frozen=True)
class DTDStream(Streamer):
    """`DTD` window by window, one stream at a time: what it gives is what `DTD` gives of the whole video.

    Held are one frame, with which the next one is compared, and at most `count` tokens. When they are full those stay
    that are least like their predecessor, as under the ceiling of the whole video: of equal ones the earlier.

    Args:
        tau: as in `DTD`; None = relative, for streams whose length is known.
        drift: as in `DTD`.
    Raises:
        ValueError: no `tau` for a stream of unknown length, several streams, windows that are not whole frames, a
            `count` below one frame, or more frames than the stream was to have.
    """

    name = "dtd"
    stages = ("projector",)
    modality = "video"
    adaptive = True
    paper = DTD.paper
    fidelity = DTD.fidelity

    tau: float | None = None
    drift: bool = False

    def reachable(self, grid: Grid) -> Sequence[int]:
        return DTD().reachable(grid)

    def start(self, grid: Grid, count: int) -> Kept:
        t, h, w = grid
        if self.tau is None and not t:
            raise ValueError("dtd: a stream of unknown length needs tau, got None")
        if count < h * w:
            raise ValueError(f"dtd: count {count} is below {h * w}, one frame")
        return Kept(grid, count)

    def step(self, state: Kept, window: Tokens) -> Kept:
        x, (t, first) = frames_of(self.name, window), (window.grid[0], state.frames)
        if len(x) > 1:
            raise ValueError(f"dtd: {len(x)} streams at once; takes one, since each keeps another number of tokens")
        if state.grid[0] and first + t > state.grid[0]:
            raise ValueError(f"dtd: more frames have come than the {state.grid[0]} of the stream")
        if self.drift:
            distance, last = since_kept(x, self.tau, state.last)
        else:
            here = x if state.last is None else torch.cat([state.last.unsqueeze(1), x], dim=1)
            distance, last = apart(here, previous(here.shape[1]))[:, -t:], x[:, -1]
        new = {"x": window.x, "size": window.size, "position": window.position, "distance": distance.flatten(1)}
        if self.tau is None:
            quota = spread(previous(state.grid[0]), x.shape[2], state.count)[first : first + t]
            new = at(new, leading(distance, quota).flatten(1))
        if state.x is not None:
            new = {name: torch.cat([getattr(state, name), value], dim=1) for name, value in new.items()}
        if self.tau is not None:
            new = at(new, leaves(new["distance"], self.tau, state.count))
        return replace(state, **new, frames=first + t, last=last.clone())

    def finish(self, state: Kept) -> Resampled:
        return Resampled(state.x, state.position, size=state.size)


def at(parts: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Of each part (1, N, ...) what the mask (1, N) marks."""
    return {name: value[:, mask[0]] for name, value in parts.items()}

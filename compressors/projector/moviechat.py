"""MovieChat: frames of a window merge with their neighbours, and what is left joins a memory that is kept short too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reduction, Resampled, Streamer, Tokens, apply, apply_position, apply_size
from foveate.compressors.frames_apart import frames_of
from foveate.compressors.matching import cosine_to, rounded
from foveate.compressors.registry import register


@dataclass(frozen=True)
class Frames:
    """Frames side by side: x (B, F, n, D), and of each the frames that it stands for and its place, (B, F)."""

    x: Tensor
    size: Tensor
    place: Tensor

    def __len__(self) -> int:
        return self.x.shape[1]

    def joined(self, other: Frames | None) -> Frames:
        """These, and others behind them."""
        if other is None:
            return self
        return Frames(*(torch.cat([getattr(self, n), getattr(other, n)], dim=1) for n in ("x", "size", "place")))

    def since(self, first: int) -> Frames:
        """Those from a number on."""
        return Frames(self.x[:, first:], self.size[:, first:], self.place[:, first:])


@dataclass(frozen=True)
class Memory:
    """What is held of a stream.

    Attributes:
        room: frames that the memory may hold at the end.
        merge: frames that become of a window.
        grid: of the stream; T = 0 where its length is not known.
        short: frames of the window that is not full yet, or has just filled, as they came; None = nothing has come.
        long: what has become of the windows before; None = nothing yet.
    """

    room: int
    merge: int
    grid: Grid
    short: Frames | None = None
    long: Frames | None = None


@register
@dataclass(frozen=True)
class MovieChat(Streamer):
    """Repeat in every window of frames: merge the two neighbours that are most alike, until few are left.

    Paper:   Song et al., CVPR 2024, https://arxiv.org/abs/2307.16449
    Code:    https://github.com/rese1f/MovieChat, MovieChat/models/moviechat.py
    Formula: s[i] = mean over places p of cos(x[i, p], x[i + 1, p]); the pair with the largest s becomes its plain mean,
             until a window of w frames has m and the long memory its cap, count / n, by the same merging
    Shapes:  x (B, T n, D) in windows -> (B, M n, D), M <= count / n, in the order of time
    Cost:    no matrix product: an inner product a token and pair of neighbours. Held: w frames and M.
    Differs: the code compares in the short memory by the mean of all dot products, not normalised (`raw`), and for
             a video that is there whole merges those that are farthest apart, which is left out as an error. Its
             memory is capped by the number of position embeddings, which belong to its Q-Former like the
             latter's own projector; here the prompt is numbered anew, as in its port to LLaVA-OneVision. A window
             is merged once the next one begins. m follows from the count where the length is known and nobody says.
             `weighted` is an addition.

    Args:
        window: w, frames that are merged together: 8 in the demonstration, 16 in the port.
        short: frames that the short memory has room for; a longer window would lose frames unseen.
        merge: m, frames that become of a window; None = as few as give the count, 2 where the length is not known.
        long: cap on the long memory in frames, beside the count: 256 in the paper, 64 in the port; None = no other.
        raw: compare by mean dot products, as the code does.
        weighted: a frame counts for as many as it stands for.
        moment: the question is about the last frame: the window it is in stays as it came, its oldest frames go first.
    Raises:
        ValueError: a number below 1, a window above `short`, tokens are not whole frames, `count` is not reachable or
            not one frame at least (two with `moment`), or more frames than the stream was to have.
    """

    name = "moviechat"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    emits_grid = True
    paper = "Song et al., CVPR 2024, https://arxiv.org/abs/2307.16449"
    fidelity = "reference"

    window: int = 16
    short: int = 18
    merge: int | None = None
    long: int | None = None
    raw: bool = False
    weighted: bool = False
    moment: bool = False

    def __post_init__(self) -> None:
        named = {"window": self.window, "short": self.short, "merge": self.merge, "long": self.long}
        if low := [f"{name} = {value}" for name, value in named.items() if value is not None and value < 1]:
            raise ValueError(f"moviechat: {', '.join(low)} must be at least 1")
        if self.window > self.short:
            raise ValueError(f"moviechat: a window of {self.window} frames is above short = {self.short}")

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, n = grid[0], grid[1] * grid[2]
        return range(n, t * n + 1, n)

    def start(self, grid: Grid, count: int) -> Memory:
        (t, h, w), room = grid, count // (grid[1] * grid[2])
        if room < 1 + self.moment:
            raise ValueError(f"moviechat: count {count} is below {(1 + self.moment) * h * w}, {1 + self.moment} frames")
        merge = self.merge or (self.share(t, room) if t else 2)
        return Memory(room if self.long is None else min(room, self.long), merge, grid)

    def share(self, frames: int, room: int) -> int:
        """The least m for which all windows of a stream of so many frames have `room` together, or their frames."""
        whole, rest = divmod(frames, self.window)
        wanted = min(room, frames)
        return next(m for m in range(1, self.window + 1) if whole * min(m, self.window) + min(m, rest) >= wanted)

    def step(self, state: Memory, window: Tokens) -> Memory:
        x, n = frames_of(self.name, window), window.grid[1] * window.grid[2]
        size, place = (each.unflatten(1, (-1, n)) for each in (window.size, window.position))
        coming = Frames(x, size.mean(-1), place[..., 0])
        if state.grid[0] and int(place[:, -1, 0].max()) // n >= state.grid[0]:
            raise ValueError(f"moviechat: more frames have come than the {state.grid[0]} of the stream")
        while len(coming):
            if state.short is not None and len(state.short) == self.window:
                state = replace(state, short=None, long=self.remembered(state))
            free = self.window - (0 if state.short is None else len(state.short))
            some = Frames(coming.x[:, :free], coming.size[:, :free], coming.place[:, :free])
            state = replace(state, short=some if state.short is None else state.short.joined(some))
            coming = coming.since(free)
        return state

    def finish(self, state: Memory) -> Resampled:
        if self.moment:
            room = state.room - (0 if state.long is None else len(state.long))
            last = state.short.since(max(0, len(state.short) - room))
            frames = last if state.long is None else state.long.joined(last)
        else:
            frames = self.remembered(state)
        (b, f, n, _), (_, h, w) = frames.x.shape, state.grid
        place = frames.place.unsqueeze(-1) + torch.arange(n, device=frames.place.device)
        size = frames.size.unsqueeze(-1).expand(b, f, n).flatten(1)
        return Resampled(frames.x.flatten(1, 2), place.flatten(1), (f, h, w), size)

    def remembered(self, state: Memory) -> Frames:
        """The long memory with the window that has just passed, within its cap."""
        few = self.merged(state.short, state.merge)
        whole = few if state.long is None else state.long.joined(few)
        return self.merged(whole, state.room - self.moment)

    def merged(self, frames: Frames, to: int) -> Frames:
        """Frames after as many merges as it takes to have no more than `to`."""
        while len(frames) > to:
            frames = self.once(frames)
        return frames

    def once(self, frames: Frames) -> Frames:
        """Frames after the two most alike neighbours of each row have merged; of equal pairs the first."""
        b, f, n, _ = frames.x.shape
        line = torch.arange(f, device=frames.x.device)
        at = self.likeness(frames.x[:, :-1], frames.x[:, 1:]).argmax(dim=1, keepdim=True)  # (B, 1)
        pair = (line == at) | (line == at + 1)
        share = frames.size if self.weighted else torch.ones_like(frames.size)
        weight = torch.where(pair, share / (share * pair).sum(dim=1, keepdim=True), 1.0)
        anchor = line[:-1] + (line[:-1] > at).long()
        step = Reduction(anchor, (line - (line > at).long()).unsqueeze(-1), weight.unsqueeze(-1))
        x = apply(step, frames.x.flatten(2)).unflatten(2, (n, -1))
        return Frames(x, apply_size(step, frames.size), apply_position(step, frames.place))

    def likeness(self, x: Tensor, other: Tensor) -> Tensor:
        """(B, F) float32: how alike frames (B, F, n, D) are."""
        if self.raw:  # the mean of all products of two frames' tokens is that of their mean tokens
            return (x.float().mean(dim=2) * other.float().mean(dim=2)).sum(dim=-1)
        return rounded(cosine_to(x.flatten(0, 1), other.flatten(0, 1)).mean(dim=-1)).view(x.shape[:2])

"""Long video: window by window through tower and projector into a bounded memory, then the decoder opens on that.

    p = host.stream(frames, "what happens?", "moviechat", memory=64)     # frames: an iterator; memory of 64 frames
    p.decode(max_new_tokens=16)
    p.next_turn(["who is there?"]).decode()                              # another question about the same memory

What is held at a time, however long the video is:

* one window of frames as they come and as the family frames them, and the pass of that window alone: one batch of
  frames with the input of every block of the tower, see `Books`; it is let go of before the next frames are asked for;
* the streamer's state: at most the tokens of its memory and what its class says beside them;
* of the windows that have passed: their charges, added up, and a digest of their seeds.

The row that the decoder opens on has as many entries as the memory has tokens, and no pixels.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from foveate.compressors.base import Compressor, Grid, Resampled, Streamer, Tokens
from foveate.compressors.registry import COMPRESSORS
from foveate.models.acting import Choices, Keeps, Methods
from foveate.models.errors import BadInput, CountMismatch, HostError
from foveate.models.frames import FRAME_KINDS
from foveate.models.inputs import TEXT, Framed, PromptShape, Row, View, as_rgb
from foveate.models.ledger import Ledger, method_flops
from foveate.models.passes import Pass
from foveate.models.visual import VisualState
from foveate.plans.plan import keep_count
from foveate.tasks.clip import Clip

if TYPE_CHECKING:
    from foveate.models.host import Host

Video = Iterable[np.ndarray | Image.Image | Clip]
"""Frames (H, W, 3) uint8, or some of them together: a `Clip`, an array (T, H, W, 3). An iterator is read once."""

WINDOW = 16
"""Frames that the tower gets at a time, where nobody says."""

FROM_TOWER = frozenset({"cls_rank", "tower_levels", *FRAME_KINDS})
"""Kinds of signal that methods in the decoder read off the tower, of which a stream has kept nothing."""

NO_PIXELS = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class Window:
    """What tower and projector made of some frames of a stream.

    Attributes:
        state: its tokens behind the projector, a whole grid, as in a pass of these frames alone.
        frame: number of its first frame in the stream.
        row: of these frames alone as the family lays them out, their pixels let go of.
    """

    state: VisualState
    frame: int
    row: Row

    @property
    def tokens(self) -> Tokens:
        """One row of tokens, their positions counted from the stream's first."""
        state, (_, h, w) = self.state, self.state.grid
        return Tokens(
            x=state.x[None],
            size=state.size[None],
            position=(state.position + self.frame * h * w)[None],
            grid=state.grid,
            seed=torch.tensor([self.row.seed], device=state.x.device),
        )


class Streamed(Pass):
    """A pass that stands behind the projector with a stream's memory: `prefill`, `score`, `decode`, `follow` and
    `next_turn` go on from there as ever. Nothing of the tower is at hand.

    Attributes:
        whole: the row that would show the whole video, for forecasts of what it would have cost.
    """

    whole: PromptShape

    def _choices(self, stage: str, methods: Methods, keeps: Keeps) -> Choices:
        found = super()._choices(stage, methods, keeps)
        for method, _ in found:
            if method is not None:
                check_behind(stage, method)
        return found


def check_behind(stage: str, method: Compressor) -> None:
    """Raises: HostError where a method of the decoder cannot follow a stream."""
    if gone := method.kinds & FROM_TOWER:
        kinds = ", ".join(sorted(gone))
        raise HostError(f"{stage}: {method.name} reads {kinds} off the tower; a stream keeps nothing of it")


def frames_of(video: Video) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 one by one. Raises: BadInput on what is none, or a frame of another size."""
    size, number = None, 0
    for each in video:
        some = each.frames if isinstance(each, Clip) else each
        for frame in some if isinstance(some, np.ndarray) and some.ndim == 4 else (some,):
            frame = as_rgb(frame, number)
            size = size or frame.shape
            if frame.shape != size:
                raise BadInput(f"frame {number}: is {frame.shape[:2]}, the ones before are {size[:2]}")
            yield frame
            number += 1


def clips(video: Video, window: int) -> Iterator[Clip]:
    """The same by windows: so many frames each, the last one fewer. Raises: BadInput, ValueError."""
    if window < 1:
        raise ValueError(f"window: {window} frames are below 1")
    held: list[np.ndarray] = []
    for frame in frames_of(video):
        held.append(frame)
        if len(held) == window:
            clip, held = Clip.of(np.stack(held)), []
            yield clip
    if held:
        yield Clip.of(np.stack(held))


def refuses(host: Host) -> str | None:
    """Why a host cannot run streams, or None."""
    if host.decoder.coordinates > 1:
        return "rotates by time, row and column: tokens of a memory stand at no time of their own"
    return None


def windows(host: Host, video: Video, question: str, ledger: Ledger, window: int = WINDOW) -> Iterator[Window]:
    """Tower and projector over a video, window by window; each window is charged to the ledger as it comes.

    Args:
        host: the model.
        video: frames in order.
        question: for the prompt's layout.
        ledger: is added to.
        window: frames at a time.
    Raises:
        HostError: a family whose prompts have no room for a stream.
        BadInput: a frame that is none, a question that cannot be put, or a family without videos.
    """
    if (reason := refuses(host)) is not None:
        raise HostError(f"{host.name}: no streams: {reason}")
    frame = 0
    for clip in clips(video, window):
        found = _window(host, clip, frame, question, ledger)
        frame += len(clip.frames)
        del clip  # or the last window's pixels would be here while the next one's come
        yield found
        del found


def _window(host: Host, clip: Clip, frame: int, question: str, ledger: Ledger) -> Window:
    p = host.open([clip], [question])
    row, (picture, *_) = p.rows[0], p.rows[0].pictures
    if (picture.position == TEXT).any():
        raise HostError(f"{host.name}: no streams: its prompts write words beside each frame")
    p.project()
    ledger.take(p.ledger[0])
    for stage, n in p.ledger[0].tokens.items():
        ledger.tokens[stage] = ledger.tokens.get(stage, 0) + n
    views = tuple(View(NO_PIXELS, view.grid) for view in row.views)
    return Window(p.states["projector"][0], frame, replace(row, pictures=(replace(picture, views=views),)))


def row_of(host: Host, row: Row, count: int, seed: int) -> Row:
    """A window's row with so many visual entries in place of its own, numbered without gaps.

    Args:
        host: the model.
        row: of any window, see `Window`.
        count: visual entries.
        seed: of the stream.
    """
    picture = row.pictures[0]
    first, last = np.flatnonzero(picture.position >= 0)[[0, -1]].tolist()
    ids = (*picture.ids[:first], *picture.ids[first : first + 1] * count, *picture.ids[last + 1 :])
    parts = [(each[:first], each[last + 1 :]) for each in (picture.view, picture.position)]
    view = np.concatenate([parts[0][0], np.zeros(count, np.int64), parts[0][1]])
    position = np.concatenate([parts[1][0], np.arange(count), parts[1][1]])
    line = View(NO_PIXELS, (1, 1, count))
    framed = Framed((line,), ids, view, position, picture.size, film=picture.film)  # a film: so the template calls it
    return host.inputs.laid([framed], row.question, row.prompt, host.inputs.ids(row.prompt), seed)


def opened(host: Host, row: Row, state: VisualState, ledger: Ledger) -> Streamed:
    """A pass behind the projector: the prompt of `row`, see `row_of`, with these visual tokens in its entries."""
    p = Streamed(host, [row])
    p.whole = row.shape
    p.stand(state, ledger)
    return p


def stream(
    host: Host,
    video: Video,
    question: str,
    method: Compressor,
    keep: float | None = None,
    memory: int | None = None,
    frames: int | None = None,
    window: int = WINDOW,
) -> Streamed:
    """See `Host.stream`."""
    if method.windowed:
        from foveate.models.watching import watch  # it needs this module's classes

        return watch(host, video, question, method, keep if memory is None else None, window)
    streamer, ledger, digest = _streamer(host, method), Ledger(), hashlib.sha256()
    if (keep is None) == (memory is None):
        raise ValueError("stream: give keep or memory, one of them")
    if keep is not None and frames is None:
        raise ValueError("stream: keep is a share of the video's tokens; it needs `frames`, or give memory instead")
    for name, value in (("memory", memory), ("frames", frames)):
        if value is not None and value < 1:
            raise ValueError(f"stream: {name} = {value} is below 1")
    state: Any = None
    row: Row | None = None
    count = seen = 0
    for part in windows(host, video, question, ledger, window):
        tokens = part.tokens
        t, h, w = tokens.grid
        if row is None:
            row, whole = part.row, (frames or 0, h, w)
            count = _count(streamer, whole, keep, memory)
            state = streamer.start(whole, count)
        seen += t
        if frames is not None and seen > frames:
            raise BadInput(f"stream: {seen} frames have come of a video of {frames}")
        flops = method_flops(streamer, host.shape, "projector", tokens.n, min(count, tokens.n), grid=tokens.grid)
        ledger.add("projector", streamer.name, flops)
        digest.update(part.row.seed.to_bytes(8, "big"))
        state = streamer.step(state, tokens)
        del part, tokens
    if row is None:
        raise BadInput("stream: the video holds no frame")
    made = streamer.finish(state)
    if not 1 <= made.x.shape[1] <= count:
        raise CountMismatch(f"{streamer.name}: holds {made.x.shape[1]} tokens, asked for at most {count}")
    seed = int.from_bytes(digest.digest()[:8], "big") >> 1
    held = remembered(made, (seen, h, w))
    p = opened(host, row_of(host, row, held.n, seed), held, ledger)
    p.whole = host.reshaped(row.shape, [(seen, *row.views[0].grid[1:])])
    return p


def stage_of(name: str) -> str:
    """Where a method for streams acts: in the decoder where it is `windowed`, else at the projector."""
    return "prefill" if getattr(COMPRESSORS.get(("prefill", name)), "windowed", False) else "projector"


def _streamer(host: Host, method: Compressor) -> Streamer:
    """The method as one for streams. Raises: HostError."""
    streamer = method.streamed()
    if streamer is None:
        raise HostError(f"{method.name}: needs all of a video at once; a stream comes window by window")
    if streamer.signals(host.encoder_depth):
        raise HostError(f"{method.name}: reads signals beside the tokens; a stream gives none")
    return streamer


def _count(streamer: Streamer, grid: Grid, keep: float | None, memory: int | None) -> int:
    """Tokens that the memory may hold: the reachable number that is not above what was asked for. Raises: HostError."""
    t, h, w = grid
    asked = memory * h * w if keep is None else keep_count(t * h * w, keep)
    if not t:
        return asked
    reachable = streamer.reachable(grid)
    if asked < reachable[0]:
        raise HostError(f"{streamer.name}: cannot hold {asked} of {t * h * w} tokens, the least is {reachable[0]}")
    return reachable[bisect_right(reachable, asked) - 1]


def remembered(made: Resampled, grid: Grid) -> VisualState:
    """A memory's tokens as a view's, of a stream with this grid, numbered anew."""
    x, position = made.x[0], made.position[0]
    index = torch.arange(len(x), device=x.device)
    share = x.new_full((len(x),), grid[0] * grid[1] * grid[2] / len(x), dtype=torch.float32)
    return VisualState(
        x=x,
        size=share if made.size is None else made.size[0],
        position=position if made.grid_out is None else index,
        origin=index,
        place=index[:, None],
        grid=made.grid_out or grid,
        whole=made.grid_out is not None,
        stage="projector",
        renumber=True,
    )

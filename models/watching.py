"""Long video through the decoder window by window: of all that has passed, keys and values of summary tokens are left.

    p = host.stream(frames, "what happens?", "video_xl", 1 / 16)          # frames: an iterator
    p.decode(max_new_tokens=16)
    p.next_turn(["who is there?"]).decode()                               # nothing of the video runs again

What is held at a time: frames in tower and projector, see `models.streaming`; the visual tokens of one window; and the
caches of the words before and of all summary tokens so far, which are what grows with the video. A question has a copy
of these to stand behind, so that another one can be asked.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.decoder import Stream
from foveate.models.errors import BadInput
from foveate.models.inputs import Row
from foveate.models.ledger import Ledger, charge_turn, charge_windows
from foveate.models.prefill import Prefill
from foveate.models.prompt import embed_prompts
from foveate.models.streaming import WINDOW, Streamed, Video, row_of, windows
from foveate.models.visual import VisualState
from foveate.models.windows import Ran, Summarises, Windows, close

if TYPE_CHECKING:
    from foveate.models.host import Host


class Watching:
    """Visual tokens of a video as they come, in the windows that all of them at once would have.

    Args:
        run: what the decoder keeps; the words before have run.
        window: visual tokens of a window.
        ratio: visual tokens to a summary token; those left over at the end get one too.

    Attributes:
        stops: the tokens that summary tokens stand behind, so far.
        ran: calls of the decoder, so far.
    """

    def __init__(self, run: Windows, window: int, ratio: int) -> None:
        self.run, self.window, self.ratio = run, window, ratio
        self.stops: list[int] = []
        self.ran: Ran = [(run.kept, 0)] if run.kept else []
        self._held: list[Tensor] = []
        self._start = self._seen = 0

    def feed(self, x: Tensor) -> None:
        """More visual tokens, (n, D); windows run once there are tokens behind them."""
        self._held.append(x)
        self._seen += len(x)
        while self._seen > self._ends():
            self._window(range(self._start + self.ratio - 1, self._ends(), self.ratio))

    def end(self) -> None:
        """No more will come: what is left runs."""
        last = self._seen - 1
        if last >= self._start:
            self._window([*range(self._start + self.ratio - 1, last, self.ratio), last])

    def _ends(self) -> int:
        """Where the next window ends at the latest: it begins with the group that the next stop is of."""
        return ((self._start + self.ratio - 1) // self.window + 1) * self.window

    def _window(self, stops: Sequence[int]) -> None:
        held, width = torch.cat(self._held), stops[-1] + 1 - self._start
        self.ran.append((width + len(stops), self.run.kept))
        self.run.window(held[None, :width], [stop - self._start for stop in stops])
        self._held, self._start = [held[width:].clone()], stops[-1] + 1  # a view would hold what has passed
        self.stops += stops


class Watched(Streamed):
    """A pass behind `prefill`, of a video that ran in windows as it came: `score`, `decode` and `follow` go on from
    there. Another question is read behind the same summary tokens, by which time nothing else of the video is left.

    Attributes:
        watched: what has run before the question.
        method: whose windows.
    """

    watched: Watching
    method: Summarises

    def next_turn(self, questions: Sequence[str]) -> Self:
        """See `Pass.next_turn`; the pass stands behind `prefill`. Raises: BadInput."""
        if len(questions) != 1:
            raise BadInput(f"next_turn: {len(questions)} questions for 1 rows")
        row, first = self.host.inputs.asked(self.rows[0], questions[0], 0), self.rows[0].first[0]
        if row.first[0] != first or (row.ids[:first] != self.rows[0].ids[:first]).any():
            raise BadInput("question 0: its prompt puts other words in front of the video, which have run")
        return read(self.host, row, self, self.ledger[0].copy())


@torch.no_grad()
def watch(
    host: Host, video: Video, question: str, method: Summarises, keep: float | None, window: int = WINDOW
) -> Watched:
    """A video through the decoder in a method's windows, and a question behind it; see `Host.stream`.

    Args:
        host: the model.
        video: frames in order.
        question: about all of it.
        method: a `windowed` one.
        keep: one summary token to so many visual ones: 1 / 2, 1 / 3 ...
        window: frames that the tower gets at a time; those of the decoder's windows are the method's own.
    Raises:
        ValueError: another ratio, or a video or host that cannot be used.
    """
    ratio = 0 if not keep else round(1 / keep)
    if ratio < 2 or abs(keep * ratio - 1) > 1e-6:
        raise ValueError(f"stream: {method.name} needs keep = 1/2, 1/3 ... of a video, got {keep}; its memory grows")
    ledger, digest = Ledger(), hashlib.sha256()
    end = host.decoder.embed(torch.tensor([min(host.ends)], device=host.device))[0]
    going: Watching | None = None
    seen = 0
    for part in windows(host, video, question, ledger, window):
        t, h, w = part.state.grid
        if going is None:
            row, grid = part.row, (h, w)
            run = Windows(host.decoder, method, end, 1)
            before, _ = _words(embed_prompts(host, [row_of(host, row, 1, 0)], [[_blank(host, [0], (1, h, w))]]))
            if before.shape[1]:
                run.words(before)
            going = Watching(run, method.window(h * w, 1), ratio)
        going.feed(part.state.x)
        seen += t
        digest.update(part.row.seed.to_bytes(8, "big"))
        del part
    if going is None:
        raise BadInput("stream: the video holds no frame")
    going.end()
    p = Watched(host, [row_of(host, row, len(going.stops), int.from_bytes(digest.digest()[:8], "big") >> 1)])
    p.watched, p.method = going, method
    p.whole = host.reshaped(row.shape, [(seen, *row.views[0].grid[1:])])
    return read(host, p.rows[0], p, ledger, (seen, *grid))


@torch.no_grad()
def read(host: Host, row: Row, of: Watched, ledger: Ledger, grid: Grid | None = None) -> Watched:
    """The words of a row behind what has been watched.

    Args:
        host: the model.
        row: as many visual entries as there are summary tokens.
        of: the pass to go on from; one that has read a question is charged for this one alone.
        ledger: of the new pass.
        grid: of the video's tokens, where no question has been read; else that is known.
    """
    again, going = grid is None, of.watched
    grid = of.states["projector"][0].grid if again else grid
    state = _blank(host, going.stops, grid)
    p = Watched(host, [row])
    p.whole, p.watched, p.method = of.whole, going, of.method
    p.stand(state, ledger)
    p.counts["projector"][0] = ledger.tokens["projector"] = going.stops[-1] + 1
    run, count = copy.copy(going.run), state.n
    stream = embed_prompts(host, [row], [[state]])
    _, words = _words(stream)
    behind = (words.shape[1], run.kept)
    run.words(words)
    p._opened = Prefill(host.decoder, stream, torch.tensor([row.seed], device=stream.x.device), [grid], [False])
    close(p._opened, run.caches, stream)
    p._caches, p.logits = p._opened.caches, host.decoder.logits(run.last[:, -1])
    entries = [sum(behind)] * host.decoder_depth
    if again:
        charge_turn(ledger, host.shape, [behind[1]] * host.decoder_depth, behind[0])
        ledger.kv_bytes_prefill = ledger.kv_bytes_end
    else:
        charge_windows(ledger, host.shape, [*going.ran, behind], of.method, count, entries)
    p.counts["layers"] = [[count] * host.decoder_depth]
    p._finish("prefill", [count])
    return p


def _words(stream: Stream) -> tuple[Tensor, Tensor]:
    """Embedded words (1, n, D) in front of a row's visual entries, and behind them."""
    at = stream.visual[0].nonzero()[:, 0]
    return stream.x[:, : int(at[0])], stream.x[:, int(at[-1]) + 1 :]


def _blank(host: Host, stops: Sequence[int], grid: Grid) -> VisualState:
    """Summary tokens behind these tokens of a stream as a view's state; they have no features before the decoder."""
    place = torch.tensor(stops, device=host.device)
    index = torch.arange(len(stops), device=host.device)
    size = place.diff(prepend=place.new_full((1,), -1))
    x = torch.zeros(len(stops), host.shape.decoder.dim, dtype=host.dtype, device=host.device)
    return VisualState(
        x, size.float(), place, index, index[:, None], grid, whole=False, stage="projector", renumber=True
    )

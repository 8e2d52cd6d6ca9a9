"""What a pass knows of itself: its rows and their views, where it stands, what has been counted and charged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from foveate.compressors.base import STAGES, Compressor, Grid
from foveate.models import ledger
from foveate.models.acting import Choices, Keeps, Methods, chosen
from foveate.models.ask import Asker, Trace
from foveate.models.decoder import LayerCache
from foveate.models.errors import BadInput, WrongStop
from foveate.models.inputs import PromptShape, Row
from foveate.models.ledger import Ledger, Reading, widest
from foveate.models.prefill import Prefill
from foveate.models.reselect import looks_at
from foveate.models.visual import VisualState, groups
from foveate.plans.plan import keep_count

if TYPE_CHECKING:
    from foveate.models.host import Host


class Books:
    """The state of a pass. Up to the projector all is told by view; in a pass of one picture a row, that is by row.

    Attributes:
        host: the model.
        rows: pictures and questions, as opened.
        laid: the same as they run, with views at the sizes that `resize` gave them.
        views: (row, number in the row) of each view of the pass.
        lanes: of each row, the numbers of its views in the pass.
        units: of each view, the numbers of what the tower encodes by itself: the view, or the frames of a video.
        lane_of: of each unit, its view.
        ledger: what each row has cost so far.
        counts: stage -> visual tokens of each row that left it; "layers" and "decode_layers" -> the same in each layer.
            Behind `decode` these are entries that the answer reads.
        states: stage -> each view's tokens behind it, up to "projector".
        traces: each unit's way through the tower; None for a blind row's.
        logits: (B, V) float32 behind the prompt, after `prefill`.
        generated: token ids of the last `decode`, end token included; several answers to a row one behind the other.
        ran: of each row: tokens of each sequence that the last `decode` ran for it.
        learning: what runs keeps its gradients: set while a method learns.
    """

    learning = False

    def __init__(self, host: Host, rows: Sequence[Row]) -> None:
        self.host, self.rows = host, list(rows)
        self.laid = list(self.rows)
        self._number()
        b = len(self.rows)
        self.ledger = [Ledger() for _ in range(b)]
        self.counts: dict[str, list] = {}
        self.states: dict[str, list[VisualState]] = {}
        self.logits: Tensor | None = None
        self.generated: list[list[int]] = []
        self.ran: list[list[int]] = []
        self._blind = [False] * b
        self._opened: Prefill | None = None
        self._caches: list[LayerCache] = []
        self._done: list[str] = []
        self._guided = STAGES.index("prefill")  # the first stage that another question makes anew
        self.ask = Asker(self)

    def _number(self) -> None:
        self.views = [(row, view) for row, laid in enumerate(self.laid) for view in range(len(laid.views))]
        self.lanes: list[list[int]] = [[] for _ in self.laid]
        self.units: list[list[int]] = []
        self.lane_of: list[int] = []
        for lane, (row, view) in enumerate(self.views):
            self.lanes[row].append(lane)
            frames, first = self.laid[row].views[view].grid[0], len(self.lane_of)
            self.units.append(list(range(first, first + frames)))
            self.lane_of += [lane] * frames
        self.traces: list[Trace | None] = [None] * len(self.lane_of)
        self._peeked: list[Trace | None] = list(self.traces)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def stop(self) -> str:
        """The last stage that has passed; "open" before the first."""
        return self._done[-1] if self._done else "open"

    @property
    def done(self) -> tuple[str, ...]:
        """Stages that have passed."""
        return tuple(self._done)

    @property
    def tokens(self) -> list[VisualState]:
        """Each view's visual tokens at this stop, up to the projector. Raises: WrongStop before anything has run."""
        if not self.states:
            raise WrongStop("tokens: nothing has run; peek_encoder() or a stage comes first")
        return list(self.states.values())[-1]

    @property
    def shapes(self) -> list[PromptShape]:
        """Of each row as it was opened: what `Host.forecast` asks for."""
        return [row.shape for row in self.rows]

    @property
    def opened(self) -> Prefill | None:
        """The prompt in the decoder, after `peek` or `prefill`."""
        return self._opened

    @property
    def caches(self) -> list[LayerCache]:
        """One for each layer, after `prefill`; shrunk after `choose_decode`."""
        return self._caches

    @property
    def cached(self) -> list[list[int | tuple[int, ...]]]:
        """Of each row: entries in each layer's cache, one number for each head where heads differ."""
        return [[cache.entries(row) for cache in self._caches] for row in range(len(self))]

    @property
    def reading(self) -> list[Reading | None]:
        """Of each row: what the tokens of its answer read, where a method reselects; None = all that is cached."""
        reads, found = self._caches[0].reads, []
        for row, entries in enumerate(self.cached):
            method, whole = None if reads is None else reads.methods[row], [widest(each) for each in entries]
            passed = [int(cache.n[row]) - cache.shown[row] for cache in self._caches]
            read = tuple(all_ - n for all_, n in zip(whole, passed, strict=True))
            found.append(method and Reading(read, whole[looks_at(method, len(whole))]))
        return found

    def of_row(self, stage: str, row: int) -> list[VisualState]:
        """A row's views behind a stage."""
        states = self.states[stage]
        return [states[lane] for lane in self.lanes[row]]

    def left(self, stage: str) -> list[int]:
        """Visual tokens of each row behind a stage of the tower, "peek" included."""
        return [sum(state.n for state in self.of_row(stage, row)) for row in range(len(self))]

    def blind(self, rows: Sequence[int] | None = None) -> None:
        """Leaves the pictures of these rows (None = all) out altogether. Raises: WrongStop once the tower has run."""
        if self.states:
            raise WrongStop("blind: the encoder has already run")
        for row in range(len(self)) if rows is None else rows:
            self._blind[row] = True

    @torch.no_grad()
    def fork(self, rows: Sequence[int]) -> Self:
        """An independent pass at the same stop, of these rows; one taken several times can go on by several plans."""
        other = copy.copy(self)
        other.ask = self.ask.fork(other, rows)
        pick: Callable[[list], list] = lambda values: [values[i] for i in rows]  # noqa: E731
        other.rows, other.laid, other.ledger = pick(self.rows), pick(self.laid), [self.ledger[i].copy() for i in rows]
        other._blind = pick(self._blind)
        other._number()
        lanes = [lane for row in rows for lane in self.lanes[row]]
        units = [unit for lane in lanes for unit in self.units[lane]]
        for name in ("traces", "_peeked"):
            setattr(other, name, [getattr(self, name)[unit] for unit in units])
        other.counts = {stage: pick(values) for stage, values in self.counts.items()}
        other.states = {stage: [values[lane] for lane in lanes] for stage, values in self.states.items()}
        other._done, other.generated = list(self._done), []
        other.ran = []
        index = torch.tensor(list(rows), device=self.host.device)
        other.logits = None if self.logits is None else self.logits[index.to(self.logits.device)]
        other._opened = None if self._opened is None else self._opened.at(index)
        other._caches = [cache.at(index) for cache in self._caches]
        return other

    def next_turn(self, questions: Sequence[str]) -> Self:
        """A pass with other questions about the same pictures, standing before the first stage that a question guides.

        That is `prefill`, or an earlier stage where a text-guided method has acted. Ledgers go on from this pass's.

        Raises:
            BadInput: not one question for each row, or one that cannot be put.
        """
        if len(questions) != len(self):
            raise BadInput(f"next_turn: {len(questions)} questions for {len(self)} rows")
        other, kept = self.fork(range(len(self))), STAGES[: self._guided]
        inputs = self.host.inputs
        other.rows = [inputs.asked(row, q, i) for i, (row, q) in enumerate(zip(self.rows, questions, strict=True))]
        other.laid = self._laid_anew(other.rows)
        other._done = [stage for stage in self._done if stage in kept]
        other.counts = {stage: n for stage, n in other.counts.items() if stage in kept}
        other.states = {stage: s for stage, s in other.states.items() if stage in ("peek", *kept)}
        other.traces = other.traces if "encoder" in kept else other._peeked
        other.ask, other.logits, other._opened, other._caches = Asker(other), None, None, []
        return other

    def go_on(self, rows: Sequence[Row], caches: Sequence[LayerCache], logits: Tensor) -> None:
        """Stands behind longer prompts of the same pictures: `rows`, with the caches and logits (B, V) behind them."""
        self.laid = self._laid_anew(rows)
        self.rows, self._caches, self.logits = list(rows), list(caches), logits
        self._opened.caches = list(caches)

    def stand(self, state: VisualState, ledger: Ledger) -> None:
        """Stands behind the projector with one row's tokens that were made elsewhere, at the cost that a ledger tells;
        what passed the stages before is told there too."""
        self.ledger = [ledger]
        for stage in STAGES[: STAGES.index("projector")]:
            self._finish(stage, [ledger.tokens[stage]])
        self._finish("projector", states=[state])

    def _laid_anew(self, rows: Sequence[Row]) -> list[Row]:
        """Other prompts of the same pictures, with views at the sizes that `resize` gave them."""
        return [
            fresh if laid is row else self.host.inputs.relaid(fresh, [view.grid for view in laid.views])
            for fresh, row, laid in zip(rows, self.rows, self.laid, strict=True)
        ]

    # -- for the stages ----------------------------------------------------------------------------------------------

    def _seeds(self, lanes: Sequence[int]) -> list[int]:
        """A seed for each view: its row's, and another for each further view of the row."""
        return [(self.rows[row].seed + 0x9E3779B97F4A7C15 * view) & (2**63 - 1) for row, view in self.at(lanes)]

    def _unit_seeds(self, units: Sequence[int]) -> list[int]:
        """A seed for each unit: its view's, and another for each further frame of it."""
        lanes = self.lanes_at(units)
        frames = [unit - self.units[lane][0] for unit, lane in zip(units, lanes, strict=True)]
        return [
            (seed + 0xD1B54A32D192ED03 * frame) & (2**63 - 1)
            for seed, frame in zip(self._seeds(lanes), frames, strict=True)
        ]

    def lanes_at(self, units: Sequence[int]) -> list[int]:
        """The view of each of some units."""
        return [self.lane_of[unit] for unit in units]

    def at(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """(row, number in the row) of some views."""
        return [self.views[lane] for lane in lanes]

    def _finish(self, stage: str, counts: list[int] | None = None, states: list[VisualState] | None = None) -> None:
        self._done.append(stage)
        if states is not None:
            self.states[stage] = states
        self.counts[stage] = self.left(stage) if counts is None else counts
        for row, n in enumerate(self.counts[stage]):
            self.ledger[row].tokens[stage] = n

    def _choices(self, stage: str, methods: Methods, keeps: Keeps) -> Choices:
        """(method, ratio) of each row, see `chosen`; remembers which stage a question guides first."""
        found = chosen(stage, methods, keeps, self._blind)
        if any(method is not None and method.text_guided for method, _ in found):
            self._guided = min(self._guided, STAGES.index(stage))
        return found

    def _key(self, choices: Choices, states: Sequence[VisualState]) -> Callable[[int], tuple]:
        """What views of one call share: (method, count, n, grid, whole, CLS). Removing nothing is no method."""

        def key(lane: int) -> tuple[Hashable, ...]:
            (method, ratio), state = choices[self.views[lane][0]], states[lane]
            count = keep_count(state.n, ratio) if state.n else 0
            if count >= state.n:
                method, count = None, state.n
            return method, count, state.n, state.grid, state.whole, method is not None and state.cls is not None

        return key

    def _grouped(self, key: Callable[[int], Hashable], where: Sequence[object]) -> Iterator[tuple[tuple, list[int]]]:
        """(key, views) of the views where `where` is true."""
        lanes = [i for i, yes in enumerate(where) if yes]
        for found, members in groups([key(i) for i in lanes]):
            yield found, [lanes[m] for m in members]

    def _charge(self, lanes: Sequence[int], stage: str, method: Compressor, n: int, count: int, grid: Grid) -> None:
        """A method's own arithmetic on n tokens of each view, of a grid alike, on its row's ledger."""
        flops = ledger.method_flops(method, self.host.shape, stage, n, count, grid=grid)
        for row, _ in self.at(lanes):
            self.ledger[row].add(stage, method.name, flops)

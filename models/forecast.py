"""What a pass by a plan will cost, from counts alone: the same charges as the pass itself, nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from foveate.compressors.base import STAGES, Compressor, Grid
from foveate.models import ledger as charge
from foveate.models.acting import hook_of
from foveate.models.decode_signals import OWN_KINDS, asked_at, queries_of
from foveate.models.decoder_signals import DECODER_KINDS
from foveate.models.errors import BadInput, HostError
from foveate.models.glimpse import glimpse_flops
from foveate.models.inputs import PromptShape
from foveate.models.kv import due
from foveate.models.ledger import Ledger, Reading
from foveate.models.prompt import joined
from foveate.models.reselect import looks_at
from foveate.models.signals import ATTENTION_KINDS, by_layer
from foveate.models.visual import check_grid
from foveate.models.windows import APART, frames_of, ran
from foveate.plans.plan import Plan, keep_count

if TYPE_CHECKING:
    from foveate.models.host import Host


@dataclass(frozen=True)
class Seen:
    """The counts of equal views at one stop.

    Attributes:
        number: of these views.
        shown: grid of the tokens of each that the uncompressed prompt shows.
        full: tokens of each when nothing is compressed.
        n: tokens of each.
        grid: of each.
        cls: the decoder will read CLS too.
        whole: the tokens are the grid.
        blocks: tokens of a frame entering each block of the tower.
        took_cls: CLS has been handed to a method.
        frames: units of the tower.
        mixed: entries are to hold mixtures of its picture's tokens, and no method acts on the row before.
    """

    number: int
    shown: Grid
    full: int
    n: int
    grid: Grid
    cls: bool
    whole: bool = True
    blocks: tuple[int, ...] = ()
    took_cls: bool = False
    mixed: bool = False
    frames: int = 1

    @property
    def n_shown(self) -> int:
        """Tokens that the uncompressed prompt shows."""
        return volume(self.shown)


@dataclass(frozen=True)
class Sketch:
    """The counts of a row at one stop.

    Attributes:
        views: kinds of views, the row's own order apart.
        shape: of the prompt.
        entries, visual: all prompt entries and visual ones in each decoder layer; behind `decode`, visual ones read.
        reading: what tokens of the answer read, where a method reselects.
        windows: visual ones are summary tokens of windows.
        n: visual tokens; in the decoder, entries.
    """

    views: tuple[Seen, ...]
    shape: PromptShape
    entries: tuple[int, ...] = ()
    visual: tuple[int, ...] = ()
    reading: Reading | None = None
    windows: bool = False

    @property
    def n(self) -> int:
        return self.visual[-1] if self.visual else sum(seen.n * seen.number for seen in self.views)


def volume(grid: Grid) -> int:
    """Tokens of a whole grid."""
    return grid[0] * grid[1] * grid[2]


def opened(shape: PromptShape, cls: bool) -> Sketch:
    """A row before anything has run."""
    kinds = Counter(
        zip(shape.grids, shape.shown or shape.grids, shape.mixed or (False,) * len(shape.grids), strict=True)
    )
    views = []
    for (grid, shown, mixed), number in kinds.items():
        n = volume(grid)
        views.append(Seen(number, shown, n, n, grid, cls, mixed=mixed, frames=grid[0]))
    return Sketch(tuple(views), shape)


@dataclass
class Forecast:
    """One forecast on its way through the stages.

    Attributes:
        host: the model.
        plan: which methods.
        phrases: tokens of each phrase of the question.
        frames: of the view that has fewest.
        n_text: words of the prompt, newlines apart.
        row: the row's ledger, filled stage by stage.
        ledger: what is charged now: the row's, or one that counts for several equal views.
        asked, phrased: the question, or its phrases, have been embedded.
    """

    host: Host
    plan: Plan
    n_text: int
    phrases: tuple[int, ...] = ()
    frames: int = 1
    row: Ledger = field(default_factory=Ledger)
    asked: bool = False
    phrased: bool = False

    def __post_init__(self) -> None:
        self.ledger = self.row

    def method(self, stage: str, n: int, grid: Grid | None = None, whole: bool = True) -> tuple[Compressor | None, int]:
        """The method that acts on n tokens, of a grid where that matters, and its count; None where nothing goes.

        Raises:
            HostError: the method cannot act here, needs a whole grid where there is none, or cannot give the count.
        """
        choice = self.plan[stage]
        if choice.is_none or self.plan.is_blind or n == 0:
            return None, n
        reason = self.host.supports(stage, choice.method, self.frames)
        if reason is not None:
            raise HostError(reason)
        count, method = keep_count(n, choice.keep), self.host.make(stage, choice.method)
        if count == n:
            return None, n
        if grid is not None:
            check_grid(method, whole, grid, n)
            if count not in method.reachable(grid):
                raise HostError(f"{stage}: {method.name} cannot give {count} of {n} tokens on grid {grid}")
        return method, count

    def stage(self, name: str, at: Sketch) -> Sketch:
        """The counts behind a stage."""
        after = getattr(self, f"_{name}")(at)
        self.row.tokens[name] = after.n
        return after

    def _own(self, stage: str, method: Compressor, n: int, count: int, text: int = 0, grid: Grid | None = None) -> None:
        self.ledger.add(stage, method.name, charge.method_flops(method, self.host.shape, stage, n, count, text, grid))

    def _each(self, at: Sketch, act: Callable[[Seen], Seen]) -> Sketch:
        """The row after a stage that acts on each view; equal views are reckoned once."""
        views = []
        for seen in at.views:
            self.ledger = Ledger()
            views.append(act(seen) if seen.n or seen.mixed else seen)
            self.row.take(self.ledger, seen.number)
        self.ledger = self.row
        return replace(at, views=tuple(views))

    def _input(self, at: Sketch) -> Sketch:
        if self.plan.is_blind:
            shape = replace(at.shape, n_text=at.shape.n_text - at.shape.newlines, newlines=0)
            return Sketch(tuple(replace(seen, n=0, cls=False, whole=False, mixed=False) for seen in at.views), shape)
        grids: dict[Grid, Grid] = {}

        def smaller(seen: Seen) -> Seen:
            method, count = self.method("input", seen.n)
            if method is not None:
                self._own("input", method, seen.n, count, grid=seen.grid)
                grids[seen.grid] = self.host.resized(method, seen.grid, count)
            return seen

        self._each(at, smaller)
        if not grids:
            return at
        shape = self.host.reshaped(at.shape, [grids.get(grid, grid) for grid in at.shape.grids])
        return opened(shape, self.host.cls_stays)

    def _encoder(self, at: Sketch) -> Sketch:
        return self._each(at, self._tower)

    def _tower(self, at: Seen) -> Seen:
        shape, depth, n = self.host.shape, self.host.encoder_depth, at.n // at.frames
        whole, self.ledger = self.ledger, Ledger()  # of one frame
        grid = (1, *at.grid[1:])
        charge.charge_embed(self.ledger, shape, n)
        charge.charge_attention(self.ledger, shape, n, 0, grid)
        method, count = self.method("encoder", n, grid, at.whole)
        sites, counts = dict(self.host.sites("encoder", method, n, count)), []
        for block in range(depth):
            leaving = min(n, sites.get(block, n))
            if leaving < n:
                self._signals("encoder", method, block, [c for c, _ in counts] + [n], n)
            counts.append((n, leaving))
            n = leaving
        charge.charge_tower(self.ledger, shape, counts, grid, method, sites)
        whole.take(self.ledger, at.frames)
        self.ledger = whole
        at = replace(at, blocks=tuple(c for c, _ in counts), mixed=at.mixed and self.plan["encoder"].is_none)
        if method is None:
            return replace(at, n=at.n_shown, grid=at.shown)
        return replace(at, n=min(n * at.frames, at.n_shown), whole=False)

    def _signals(self, stage: str, method: Compressor, now: int, blocks: list[int], n: int, frames: int = 0) -> None:
        """Signals of the tower and of the question, for a method standing in block `now`, or behind it where it gets
        the tokens of so many `frames`."""
        vit, text = self.host.shape.vit, self.host.text
        for block, wanted in by_layer(method, self.host.encoder_depth, now, ATTENTION_KINDS).items():
            kinds = sorted({signal.kind for signal in wanted})
            at_hand = not frames and block == now
            flops = charge.encoder_signal_flops(vit, kinds, vit.rows(blocks[block]), at_hand)
            self.ledger.add(stage, "signals", max(1, frames) * flops)
        kinds = {s.kind for s in method.signals(self.host.encoder_depth)}
        if {"question", "text_similarity"} & kinds:
            self._question(stage)
        if "text_similarity" in kinds:
            self.ledger.add(stage, "signals", text.similarity_flops(n))
        if "phrase_similarity" in kinds:
            if not self.phrased:
                self.phrased = True
                self.row.add(stage, "phrase embedding", sum(map(text.flops, self.phrases)))
            self.ledger.add(stage, "signals", text.similarity_flops(n, len(self.phrases)))

    def _question(self, stage: str) -> None:
        """The question's embedding, which is paid for once."""
        if not self.asked:
            self.asked = True
            self.row.add(stage, "question embedding", self.host.text.flops(self.host.question_tokens(self.n_text)))

    def _outside(self, at: Sketch) -> Sketch:
        return self._each(at, self._thinned)

    def _thinned(self, at: Seen) -> Seen:
        method, count = self.method("outside", at.n, at.grid, at.whole)
        at = replace(at, mixed=at.mixed and self.plan["outside"].is_none)
        if method is None:
            return at
        takes = method.takes_cls and self.host.shape.vit.hands_cls and at.frames == 1
        n = at.n + int(takes)
        self._signals("outside", method, self.host.encoder_depth - 1, list(at.blocks), n, at.frames)
        self._own("outside", method, n, count, grid=at.grid)
        return replace(at, n=count, cls=at.cls and not takes, whole=method.emits_grid, took_cls=takes)

    def _projector(self, at: Sketch) -> Sketch:
        return self._each(at, self._projected)

    def _projected(self, at: Seen) -> Seen:
        method, count = self.method("projector", at.n, at.grid, at.whole)
        choice = self.plan["projector"]
        first = None if choice.is_none else hook_of(self.host.make("projector", choice.method))
        n, cls, shape = at.n, at.cls, self.host.shape
        if method is not None:
            takes = method.takes_cls and shape.vit.hands_cls and not at.took_cls and at.frames == 1
            n, cls = n + int(takes), cls and not takes
            self._signals("projector", method, self.host.encoder_depth - 1, list(at.blocks), n, at.frames)
            self._own("projector", method, n, count, grid=at.grid)
        hook = hook_of(method)
        rows = n if hook in (None, "after") else count if hook == "before" else 0
        if at.mixed and first in (None, "after"):
            charge.charge_mixture(self.ledger, shape, at.full, at.n_shown)
        elif rows:
            charge.charge_project(self.ledger, shape, rows)
        if cls:
            charge.charge_project(self.ledger, shape, 1)
        return replace(at, n=count, cls=cls, whole=at.whole if method is None else method.emits_grid)

    def _prefill(self, at: Sketch) -> Sketch:
        shape, depth = self.host.shape, self.host.decoder_depth
        n = sum(seen.n * seen.number for seen in at.views)
        grids = [seen.grid for seen in at.views for _ in range(seen.number)]
        grid, whole = joined(grids, all(seen.whole for seen in at.views))
        method, count = self.method("prefill", n, grid if volume(grid) == n else (1, 1, n), whole)
        if method is not None and method.windowed:
            return self._windows(at, method, n, count)
        sites = dict(self.host.sites("prefill", method, n, count))
        text, visual = at.shape.n_text + sum(seen.number for seen in at.views if seen.cls), []
        for layer in range(depth):
            here = sites.get(layer, n)
            if here < n:
                for read, asked in by_layer(method, depth, layer, tuple(DECODER_KINDS)).items():
                    seen = visual[read] if read < layer else n
                    for kind in sorted({signal.kind for signal in asked}):
                        flops = charge.decoder_signal_flops(shape.decoder, kind, text + seen, seen, read < layer)
                        self.ledger.add("prefill", "signals", flops)
                kinds = {signal.kind for signal in method.signals_at(layer, depth)}
                if "cls_rank" in kinds and layer == min(sites):
                    for seen in at.views:
                        rows = shape.vit.rows(seen.blocks[-1])
                        flops = charge.encoder_signal_flops(shape.vit, ["cls_attention"], rows, at_hand=False)
                        self.ledger.add("prefill", "signals", flops * seen.number * seen.frames)
                if "glimpse_query" in kinds:
                    self.ledger.add("prefill", "signals", glimpse_flops(shape.decoder, text + n, layer - 1))
                if "spoken" in kinds:
                    self.ledger.add("prefill", "signals", method.spoken_flops(text))
                if "frame_similarity" in kinds:
                    self._question("prefill")
                    frames = sum(grid[0] for grid in grids)
                    self.ledger.add("prefill", "signals", self.host.text.similarity_flops(frames))
            visual.append(here)
            n = n if method is not None and method.bypass else here
        entries = [text + v for v in visual]
        charge.charge_layer(self.ledger, shape, entries[0])
        left = [n] * depth if method is not None and method.forgets else visual
        cached = [text + v for v in left]
        charge.charge_prefill(self.ledger, shape, entries, visual, method, sites, cached)
        return replace(at, entries=tuple(cached), visual=tuple(left))

    def _windows(self, at: Sketch, method: Compressor, n: int, count: int) -> Sketch:
        """The decoder in windows, see `models.windows`."""
        if at.shape.before is None:
            raise HostError(f"{method.name}: {APART}")
        cls = sum(seen.number for seen in at.views if seen.cls)
        before, text = at.shape.before + cls, at.shape.n_text + cls
        calls = ran(before, method.stops(n, count), method.window(n, frames_of(at.shape)), text - before)
        depth = self.host.decoder_depth
        entries = (text + count,) * depth
        charge.charge_windows(self.ledger, self.host.shape, calls, method, count, entries)
        return replace(at, entries=entries, visual=(count,) * depth, windows=True)

    def _decode(self, at: Sketch) -> Sketch:
        entries, left, once, reading = list(at.entries), list(at.visual), set(), None
        depth, heads = self.host.decoder_depth, self.host.shape.decoder.kv_heads
        for layer, (all_, n) in enumerate(zip(at.entries, at.visual, strict=True)):
            method, count = self.method("decode", n)
            budgets = due(method, n, self.plan["decode"].keep, layer, depth, heads, at.visual[-1])
            if not budgets:
                continue
            if method.reselects:
                left[layer] = budgets[0]
                read = tuple(all_ - n + some for all_, n, some in zip(at.entries, at.visual, left, strict=True))
                reading = Reading(read, at.entries[looks_at(method, depth)])
                continue
            for signal in asked_at(method, layer, depth, at.windows):
                if signal.kind in OWN_KINDS or signal.key not in once:
                    once.add(signal.key)
                    read = all_ if signal.kind in OWN_KINDS else at.entries[signal.layer]
                    queries = queries_of(signal.kind, read)
                    if queries:
                        flops = charge.received_flops(self.host.shape.decoder, read, queries)
                        self.ledger.add("decode", "signals", flops)
            self._own("decode", method, n, count, all_ - n)
            each = tuple(all_ - n + budget for budget in budgets)
            entries[layer], left[layer] = each[0] if len(set(each)) == 1 else each, -(-sum(budgets) // heads)
        charge.charge_cache(self.ledger, self.host.shape, entries)
        return replace(at, entries=tuple(entries), visual=tuple(left), reading=reading)


def forecast(host: Host, plan: Plan, shape: PromptShape, new_tokens: int = 0, turns: int = 1) -> Ledger:
    """See `Host.forecast`."""
    if shape.n_text < 1 or new_tokens < 0 or turns < 1:
        raise BadInput(
            f"forecast: n_text {shape.n_text} and turns {turns} must be at least 1, new_tokens {new_tokens} at least 0"
        )
    words = shape.n_text - shape.newlines
    run = Forecast(host, plan, words, host.phrase_tokens(shape), shape.frames)
    stops = [opened(shape, host.cls_stays)]
    for stage in STAGES:
        stops.append(run.stage(stage, stops[-1]))
    charge.charge_answer(run.ledger, host.shape, stops[-1].entries, new_tokens, stops[-1].reading)
    again = STAGES.index("prefill")
    for stage, choice in plan.active:
        if choice.method != "blind" and host.make(stage, choice.method).text_guided:
            again = min(again, STAGES.index(stage))
    for _ in range(turns - 1):
        at = replace(stops[again], entries=(), visual=(), windows=False)
        run.asked, run.phrased = False, False  # all is embedded anew
        for stage in STAGES[again:]:
            at = run.stage(stage, at)
        charge.charge_answer(run.ledger, host.shape, at.entries, new_tokens, at.reading)
    return run.ledger

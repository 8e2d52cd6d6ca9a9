"""What a pass by a plan will cost, from counts alone: the same charges as the pass itself, nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foveate.compressors.base import STAGES, Compressor, Grid
from foveate.compressors.registry import make
from foveate.models import ledger as charge
from foveate.models.errors import BadInput, HostError
from foveate.models.ledger import Ledger
from foveate.models.signals import ATTENTION_KINDS, by_layer
from foveate.models.visual import check_grid
from foveate.plans.plan import Plan, keep_count

if TYPE_CHECKING:
    from foveate.models.llava import LlavaHost


@dataclass(frozen=True)
class Sketch:
    """The counts at one stop.

    Attributes:
        n: visual tokens.
        grid: of the picture.
        cls: the decoder will read CLS too.
        whole: the tokens are the grid.
        blocks: patches entering each block of the tower.
        entries, visual: all prompt entries and visual ones in each decoder layer.
        asked: the question has been embedded.
    """

    n: int
    grid: Grid
    cls: bool
    whole: bool = True
    blocks: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()
    visual: tuple[int, ...] = ()
    asked: bool = False


@dataclass
class Forecast:
    """One forecast on its way through the stages.

    Attributes:
        host: the model.
        plan: which methods.
        n_text: prompt entries that are text.
        ledger: filled stage by stage.
    """

    host: LlavaHost
    plan: Plan
    n_text: int
    ledger: Ledger = field(default_factory=Ledger)

    def method(self, stage: str, n: int, at: Sketch | None = None) -> tuple[Compressor | None, int]:
        """The method that acts on n tokens and its count; None where it would remove nothing.

        Raises:
            HostError: the method cannot act here, needs a whole grid where there is none, or cannot give the count.
        """
        choice = self.plan[stage]
        if choice.is_none or self.plan.is_blind or n == 0:
            return None, n
        reason = self.host.supports(stage, choice.method)
        if reason is not None:
            raise HostError(reason)
        count, method = keep_count(n, choice.keep), make(stage, choice.method)
        if count == n:
            return None, n
        if at is not None:
            check_grid(method, at.whole, at.grid, n)
            if count not in method.reachable(at.grid):
                raise HostError(f"{stage}: {method.name} cannot give {count} of {n} tokens on grid {at.grid}")
        return method, count

    def stage(self, name: str, at: Sketch) -> Sketch:
        """The counts behind a stage."""
        after = getattr(self, f"_{name}")(at)
        self.ledger.tokens[name] = after.n
        return after

    def _own(self, stage: str, method: Compressor, n: int, count: int, text: int = 0) -> None:
        self.ledger.add(stage, method.name, charge.method_flops(method, self.host.shape, stage, n, count, text))

    def _input(self, at: Sketch) -> Sketch:
        if self.plan.is_blind:
            return Sketch(0, self.host.grid, cls=False)
        method, count = self.method("input", self.host.n_visual)
        if method is None:
            return at
        self._own("input", method, self.host.n_visual, count)
        grid = self.host.resized(method, count)
        return Sketch(grid[0] * grid[1] * grid[2], grid, at.cls)

    def _encoder(self, at: Sketch) -> Sketch:
        if at.n == 0:
            return at
        shape, depth, n = self.host.shape, self.host.encoder_depth, at.n
        charge.charge_embed(self.ledger, shape, n)
        charge.charge_attention(self.ledger, shape, n)
        method, count = self.method("encoder", n, at)
        sites = dict(self.host.sites("encoder", method, n, count))
        counts, asked = [], at.asked
        for block in range(depth):
            leaving = min(n, sites.get(block, n))
            if leaving < n:
                asked = self._signals("encoder", method, block, [c for c, _ in counts] + [n], n, asked, here=True)
            counts.append((n, leaving))
            n = leaving
        charge.charge_tower(self.ledger, shape, counts, method, sites)
        return Sketch(n, at.grid, at.cls, method is None, tuple(c for c, _ in counts), asked=asked)

    def _signals(
        self, stage: str, method: Compressor, now: int, blocks: list[int], n: int, asked: bool, here: bool = False
    ) -> bool:
        """Signals of the tower and of the question, for a method standing in (`here`) or behind block `now`."""
        vit, text = self.host.shape.vit, self.host.text
        for block, wanted in by_layer(method, self.host.encoder_depth, now, ATTENTION_KINDS).items():
            kinds = sorted({signal.kind for signal in wanted})
            at_hand = here and block == now
            flops = charge.encoder_signal_flops(vit, kinds, blocks[block] + int(vit.cls), at_hand)
            self.ledger.add(stage, "signals", flops)
        if any(s.kind == "text_similarity" for s in method.signals(self.host.encoder_depth)):
            if not asked:
                self.ledger.add(stage, "question embedding", text.flops(self.host.question_tokens(self.n_text)))
            self.ledger.add(stage, "signals", text.similarity_flops(n))
            return True
        return asked

    def _outside(self, at: Sketch) -> Sketch:
        method, count = self.method("outside", at.n, at)
        if method is None:
            return at
        takes = method.takes_cls and self.host.shape.vit.cls
        n = at.n + int(takes)
        asked = self._signals("outside", method, self.host.encoder_depth - 1, list(at.blocks), n, at.asked)
        self._own("outside", method, n, count)
        return Sketch(count, at.grid, at.cls and not takes, method.emits_grid, at.blocks, asked=asked)

    def _projector(self, at: Sketch) -> Sketch:
        method, count = self.method("projector", at.n, at)
        n, cls, asked, shape = at.n, at.cls, at.asked, self.host.shape
        if method is not None:
            takes = method.takes_cls and shape.vit.cls and self._cls_at_hand()
            n, cls = n + int(takes), cls and not takes
            asked = self._signals("projector", method, self.host.encoder_depth - 1, list(at.blocks), n, asked)
            self._own("projector", method, n, count)
        hook = None if method is None else getattr(method, "hook", "after")
        rows = n if hook in (None, "after") else count if hook == "before" else 0
        if rows:
            charge.charge_project(self.ledger, shape, rows)
        if cls:
            charge.charge_project(self.ledger, shape, 1)
        whole = at.whole if method is None else method.emits_grid
        return Sketch(count, at.grid, cls, whole, at.blocks, asked=asked)

    def _cls_at_hand(self) -> bool:
        """CLS has not been handed to a method at `outside`."""
        method, _ = self.method("outside", self.ledger.tokens["encoder"])
        return method is None or not method.takes_cls

    def _prefill(self, at: Sketch) -> Sketch:
        shape, depth, n = self.host.shape, self.host.decoder_depth, at.n
        method, count = self.method("prefill", n, at)
        sites = dict(self.host.sites("prefill", method, n, count))
        text, visual = self.n_text + int(at.cls), []
        for layer in range(depth):
            if sites.get(layer, n) < n:
                for read in by_layer(method, depth, layer, ("last_query",)):
                    seen = text + (visual[read] if read < layer else n)
                    flops = charge.last_query_flops(shape.decoder, seen, has_run=read < layer)
                    self.ledger.add("prefill", "signals", flops)
                n = sites[layer]
            visual.append(n)
        entries = [text + v for v in visual]
        charge.charge_layer(self.ledger, shape, entries[0])
        charge.charge_prefill(self.ledger, shape, entries, visual, method, sites)
        return Sketch(n, at.grid, at.cls, at.whole, at.blocks, tuple(entries), tuple(visual), at.asked)

    def _decode(self, at: Sketch) -> Sketch:
        entries, left = list(at.entries), list(at.visual)
        for layer, (all_, n) in enumerate(zip(at.entries, at.visual, strict=True)):
            method, count = self.method("decode", n)
            if method is None:
                continue
            if method.signals_at(layer, self.host.decoder_depth):
                self.ledger.add("decode", "signals", charge.accumulated_flops(self.host.shape.decoder, all_))
            self._own("decode", method, n, count, all_ - n)
            entries[layer], left[layer] = all_ - n + count, count
        charge.charge_cache(self.ledger, self.host.shape, entries)
        return Sketch(left[-1], at.grid, at.cls, at.whole, at.blocks, tuple(entries), tuple(left), at.asked)


def forecast(host: LlavaHost, plan: Plan, n_text: int, new_tokens: int = 0, turns: int = 1) -> Ledger:
    """See `Host.forecast`."""
    if n_text < 1 or new_tokens < 0 or turns < 1:
        raise BadInput(
            f"forecast: n_text {n_text} and turns {turns} must be at least 1, new_tokens {new_tokens} at least 0"
        )
    run = Forecast(host, plan, n_text)
    stops = [Sketch(host.n_visual, host.grid, host.cls_stays)]
    for stage in STAGES:
        stops.append(run.stage(stage, stops[-1]))
    charge.charge_answer(run.ledger, host.shape, stops[-1].entries, new_tokens)
    again = STAGES.index("prefill")
    for stage, choice in plan.active:
        if choice.method != "blind" and make(stage, choice.method).text_guided:
            again = min(again, STAGES.index(stage))
    for _ in range(turns - 1):
        at = stops[again]
        at = Sketch(at.n, at.grid, at.cls, at.whole, at.blocks)  # a new question is embedded anew
        for stage in STAGES[again:]:
            at = run.stage(stage, at)
        charge.charge_answer(run.ledger, host.shape, at.entries, new_tokens)
    return run.ledger

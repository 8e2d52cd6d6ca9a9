"""One pass of a batch through a host, stage by stage, with a stop behind each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.compressors.base import STAGES
from foveate.models import answers, ledger, turns
from foveate.models.acting import Choices, Keeps, Methods, act, hook_of, with_cls
from foveate.models.ask import Trace
from foveate.models.books import Books
from foveate.models.errors import BadInput, WrongStop
from foveate.models.host import Score
from foveate.models.kv import shrink
from foveate.models.prefill import Cut, Prefill
from foveate.models.prompt import embed_prompts, joined
from foveate.models.sampling import Settings, greedily, read
from foveate.models.visual import Riders, VisualState, groups, in_one, stack, unstack
from foveate.models.windows import in_windows
from foveate.plans.plan import Plan, keep_count

ACTS = dict(zip(STAGES, ("resize", "encode", "thin", "project", "prefill", "choose_decode"), strict=True))
"""Stage -> the method of a pass that runs it."""


def _graded(act: Callable[..., None]) -> Callable[..., None]:
    """A stage without gradients, unless a method learns (`Books.learning`)."""

    @wraps(act)
    def run(self: Pass, *given: Any, **named: Any) -> None:
        with torch.set_grad_enabled(self.learning):
            return act(self, *given, **named)

    return run


class Pass(Books):
    """Rows on their way: `resize`, `encode`, `thin`, `project`, `prefill`, then `score` or `decode`.

    A stage that was skipped runs untouched when a later one is called. Each takes one compressor for all rows or one
    for each (None = untouched), and keep ratios alike; a ratio of 1 never calls the method. Up to the projector a
    method acts on each view of a row by itself; in the decoder on all its visual entries together. What a pass holds
    is told in `Books`.
    """

    @_graded
    def resize(self, knob: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `input`: smaller pictures, fewer frames; position embeddings are interpolated to the new grids."""
        self._reach("input")
        for row, (method, ratio) in enumerate(self._choices("input", knob, keep)):
            if method is None:
                continue
            grids = []
            for lane, view in zip(self.lanes[row], self.rows[row].views, strict=True):
                count = keep_count(view.n, ratio)
                grids.append(self.host.resized(method, view.grid, count))
                self._charge([lane], "input", method, view.n, count, view.grid)
            self.laid[row] = self.host.relaid(self.rows[row], grids)
        rows = zip(self._blind, self.laid, strict=True)
        self._number()
        self._finish("input", [0 if blind else row.shape.n_tokens for blind, row in rows])

    @_graded
    def peek_encoder(self) -> None:
        """Runs the attention of the first ViT block, so that its tokens can be looked at before `encode`."""
        if "input" not in self._done:
            self.resize()
        if "peek" in self.states:
            return
        tower, units = self.host.tower, [u for row, view in self.views for u in self.laid[row].views[view].units]
        live = [not self._blind[self.views[lane][0]] for lane in self.lane_of]
        parts: list[VisualState] = [self.host.no_tokens()] * len(units)
        for (grid, _), members in self._grouped(lambda i: (units[i].grid, units[i].pixels.ndim), live):
            x = tower.embed(self.host.pixels([units[i] for i in members]), grid)
            group = tower.start(members, x, self._fresh(members))
            blank = [self._untouched()] * len(members)
            seen = unstack(tower.tokens(group.x[:, tower.first :], grid), group.riders, "peek", blank)
            for number, (unit, state) in enumerate(zip(members, seen, strict=True)):
                self.traces[unit], parts[unit] = (group, number), state
                paid = self.ledger[self.views[self.lane_of[unit]][0]]
                ledger.charge_embed(paid, self.host.shape, state.n)
                ledger.charge_attention(paid, self.host.shape, state.n, 0, grid)
        self.states["peek"], self._peeked = self._in_views(parts), list(self.traces)

    def _untouched(self) -> VisualState:
        """What a view's state is made from."""
        return replace(self.host.no_tokens(), cls_stays=self.host.cls_stays, renumber=False)

    def _in_views(self, parts: Sequence[VisualState]) -> list[VisualState]:
        """Each view's state from those of its units."""
        laid = [self.laid[row].views[view] for row, view in self.views]
        return [in_one([parts[u] for u in units], view.grid) for units, view in zip(self.units, laid, strict=True)]

    def _fresh(self, units: Sequence[int]) -> Riders:
        """Riders of units of equal grid that nothing has touched."""
        device, place = self.host.device, []
        for unit in units:
            lane = self.lane_of[unit]
            row, view = self.views[lane]
            (_, h, w), frame = self.laid[row].views[view].grid, unit - self.units[lane][0]
            place.append(self.laid[row].places[view][frame * h * w : (frame + 1) * h * w])
        index = torch.arange(h * w, device=device).expand(len(units), -1)
        return Riders(
            size=torch.ones(len(units), h * w, device=device),
            position=index,
            origin=index,
            place=torch.from_numpy(np.stack(place)).to(device),
            rank=index,
            seed=torch.tensor(self._unit_seeds(units), device=device),
            grid=(1, h, w),
        )

    @_graded
    def encode(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `encoder`: the tower, with reductions inside its blocks."""
        self._reach("encoder")
        self.peek_encoder()
        tower, parts = self.host.tower, [self.host.no_tokens()] * len(self.lane_of)
        choices, traces = self._choices("encoder", compressor, keep), list(self.traces)
        for (method, count, _), members in self._grouped(lambda i: self._inside(choices, traces[i], i), traces):
            start = traces[members[0]][0]
            index = torch.tensor([traces[i][1] for i in members], device=start.x.device)
            group = start.at(index, start.x[index], start.riders.at(index))
            group.views = members
            sites, grid = self.host.sites("encoder", method, group.riders.n, count), start.riders.grid
            for done in tower.run(group, method, sites, self.ask.in_block(method)):
                for row, _ in self.at(self.lanes_at(done.views)):
                    ledger.charge_tower(self.ledger[row], self.host.shape, done.counts, grid, method, dict(sites))
                for part in tower.shown(done, [self._mask(unit) for unit in done.views]):
                    x, extra = tower.tokens(part.x[:, tower.first :], start.riders.grid), tower.extra(part)
                    after = unstack(x, part.riders, "encoder", [self._untouched()] * len(part.views))
                    for number, (unit, state) in enumerate(zip(part.views, after, strict=True)):
                        cls = part.x[number, 0] if tower.hands_cls else None
                        parts[unit] = replace(state, cls=cls, extra=None if extra is None else extra[number])
                        self.traces[unit] = part, number
                for number, unit in enumerate(done.views):
                    lane = self.lane_of[unit]
                    if self._is_mixed(lane) and choices[self.views[lane][0]][0] is None:
                        parts[unit] = replace(parts[unit], rest=done.x[number, tower.first :])
        self._finish("encoder", states=self._in_views(parts))

    def _inside(self, choices: Choices, trace: Trace, unit: int) -> tuple[Hashable, ...]:
        """What units of one call of the tower share: (method, count, group). Removing nothing is no method."""
        (method, ratio), group = choices[self.views[self.lane_of[unit]][0]], trace[0]
        count = keep_count(group.riders.n, ratio)
        return (method, count, id(group)) if count < group.riders.n else (None, group.riders.n, id(group))

    def _mask(self, unit: int) -> np.ndarray | None:
        """(n,) bool, which tokens of an untouched unit the prompt shows; None = all."""
        lane = self.lane_of[unit]
        row, view = self.views[lane]
        if not self.laid[row].shape.shown:
            return None
        return np.split(self.laid[row].entries[view] >= 0, len(self.units[lane]))[unit - self.units[lane][0]]

    def _is_mixed(self, lane: int) -> bool:
        """Whether entries of a view's picture hold mixtures of its tokens."""
        row, view = self.views[lane]
        mixed = self.laid[row].shape.mixed
        return bool(mixed) and mixed[view]

    @_graded
    def thin(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `outside`: between tower and projector."""
        self._reach("outside")
        choices = self._choices("outside", compressor, keep)
        touched = [choices[row][0] is not None for row, _ in self.views]
        states = [replace(s, rest=None) if yes else s for s, yes in zip(self.states["encoder"], touched, strict=True)]
        key = self._key(choices, states)
        for (method, count, *_), members in self._grouped(key, [s.n for s in states]):
            if method is None:
                continue
            old = [states[i] for i in members]
            if method.takes_cls and old[0].cls is not None:
                old = [with_cls(state) for state in old]
            x, riders = stack(old, self._seeds(members))
            signals = self.ask.behind_tower(method, members, x, "outside")
            self._charge(members, "outside", method, riders.n, count, riders.grid)
            for i, state in zip(members, act(method, x, riders, count, signals, "outside", old), strict=True):
                states[i] = state
        self._finish("outside", states=states)

    @_graded
    def project(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `projector`: a method before, after or instead of the projector (its `hook`; without one, after)."""
        self._reach("projector")
        states, choices = list(self.states["outside"]), self._choices("projector", compressor, keep)
        key, mixed = self._key(choices, states), self._mixed(choices, states)
        for (method, count, *_), members in self._grouped(key, [s.n for s in states]):
            new = [states[i] for i in members]
            if method is not None and method.takes_cls and new[0].cls is not None:
                new = [with_cls(state) for state in new]
            hook, signals = hook_of(method), {}
            if method is not None:
                signals = self.ask.behind_tower(method, members, torch.stack([s.x for s in new]), "projector")
            if hook in (None, "after"):
                new = self._projected(members, new, mixed)
            if method is not None:
                x, riders = stack(new, self._seeds(members))
                self._charge(members, "projector", method, riders.n, count, riders.grid)
                new = act(method, x, riders, count, signals, "projector", new)
            if hook == "before":
                new = self._projected(members, new, {})
            for i, state in zip(members, new, strict=True):
                states[i] = self._cls_projected(i, replace(state, stage="projector"))
        self._finish("projector", states=states)

    def _projected(
        self, lanes: Sequence[int], states: Sequence[VisualState], done: Mapping[int, Tensor]
    ) -> list[VisualState]:
        """States behind the projector, in groups of equal n; `done` has those that are there already."""
        out = [replace(s, x=done.get(lane, s.x), rest=None) for lane, s in zip(lanes, states, strict=True)]
        for n, at in groups([None if lane in done else s.n for lane, s in zip(lanes, states, strict=True)]):
            if n is None:
                continue
            x = self.host.project(torch.stack([states[i].x for i in at]))
            for i, view in zip(at, x, strict=True):
                extra = states[i].extra
                out[i] = replace(out[i], x=view, extra=None if extra is None else self.host.project_extra(extra))
                ledger.charge_project(self.ledger[self.views[lanes[i]][0]], self.host.shape, n)
        return out

    def _mixed(self, choices: Choices, states: Sequence[VisualState]) -> dict[int, Tensor]:
        """View -> its entries (shown, D) behind the projector, where they are mixtures and nothing has acted before."""
        found: dict[int, Tensor] = {}
        for row, laid in enumerate(self.laid):
            lanes = iter(self.lanes[row])
            for picture in laid.pictures:
                own = [next(lanes) for _ in picture.views]
                if states[own[0]].rest is None or hook_of(choices[row][0]) not in (None, "after"):
                    continue
                entries = self.host.mixed(picture, self.host.project(torch.stack([states[i].rest for i in own])))
                for lane, view, x in zip(own, picture.views, entries, strict=True):
                    found[lane] = x
                    ledger.charge_mixture(self.ledger[row], self.host.shape, view.n, len(x))
        return found

    def _cls_projected(self, lane: int, state: VisualState) -> VisualState:
        """A CLS that the decoder reads goes through the projector too; any other ends here."""
        if state.cls is None or not state.cls_stays:
            return replace(state, cls=None)
        ledger.charge_project(self.ledger[self.views[lane][0]], self.host.shape, 1)
        return replace(state, cls=self.host.project(state.cls[None])[0])

    @_graded
    def peek(self) -> None:
        """Runs decoder layer 0, so that its attention can be looked at before `prefill`; no cut precedes layer 1."""
        self._enter()
        if self._opened.layer:
            return
        self._opened.step()
        for row, entries in enumerate(self._opened.entries):
            ledger.charge_layer(self.ledger[row], self.host.shape, entries[0])

    def _enter(self) -> None:
        """Brings the prompts to the decoder, where they are not there yet."""
        if self._opened is not None:
            return
        if "projector" not in self._done:
            self.project()
        states = [self.of_row("projector", row) for row in range(len(self))]
        stream = embed_prompts(self.host, self.laid, states)
        seeds = torch.tensor([row.seed for row in self.rows], device=stream.x.device)
        grids, whole = zip(*(joined([s.grid for s in own], all(s.whole for s in own)) for own in states), strict=True)
        self._opened = Prefill(self.host.decoder, stream, seeds, grids, whole)

    @_graded
    def prefill(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `prefill`: the prompt through the decoder; visual tokens leave before the method's layers, or run
        window by window and leave others behind."""
        self._reach("prefill")
        self._enter()
        choices = self._choices("prefill", compressor, keep)
        if any(method is not None and method.windowed for method, _ in choices):
            self._opened, self.logits = in_windows(self, choices)
        else:
            self._cut(choices)
        self._caches = self._opened.caches
        self.counts["layers"] = [list(v) for v in self._opened.visual]
        self._finish("prefill", [v[-1] for v in self._opened.visual])

    def _cut(self, choices: Choices) -> None:
        """The prompt through the decoder, visual tokens leaving it on the way."""
        self.peek()
        run, cuts = self._opened, []
        for visual, (method, ratio) in zip(run.visual, choices, strict=True):
            n = visual[0]
            sites = self.host.sites("prefill", method, n, keep_count(n, ratio)) if n and method is not None else []
            cuts.append(Cut(method, dict(sites)) if sites else None)
        self.logits = run.finish(cuts, self.ask.in_prefill)
        for row, cut in enumerate(cuts):
            method, sites = (None, {}) if cut is None else (cut.compressor, cut.sites)
            ran, cached = (run.entries[row], run.visual[row]), [cache.entries(row) for cache in run.caches]
            ledger.charge_prefill(self.ledger[row], self.host.shape, *ran, method, sites, cached)

    @_graded
    def choose_decode(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `decode`: shrinks the cache of every layer, or says how tokens of an answer read it (`reselects`);
        `score` and `decode` go on from what is left."""
        self._reach("decode")
        self._caches = shrink(self, self._caches, self._choices("decode", compressor, keep))
        self._opened.caches = list(self._caches)  # nobody holds what has gone
        left = [cache.shown for cache in self._caches]
        self.counts["decode_layers"] = [[layer[row] for layer in left] for row in range(len(self))]
        for row, entries in enumerate(self.cached):
            ledger.charge_cache(self.ledger[row], self.host.shape, entries)
        self._finish("decode", [layers[-1] for layers in self.counts["decode_layers"]])

    def run(self, plans: Plan | Sequence[Plan]) -> Pass:
        """All stages, the cache's included, by one plan or one for each row; returns itself, to `score` or `decode`."""
        each = [plans] * len(self) if isinstance(plans, Plan) else list(plans)
        if len(each) != len(self):
            raise BadInput(f"run: {len(each)} plans for {len(self)} rows")
        for stage in STAGES:
            self.run_stage(stage, each)
        return self

    def run_stage(self, stage: str, plans: Sequence[Plan]) -> None:
        """One stage, each row by its plan; at the first one, rows with a blind plan lose their pictures."""
        if stage == STAGES[0]:
            self.blind([row for row, plan in enumerate(plans) if plan.is_blind])
        picks = [None if plan.is_blind or plan[stage].is_none else plan[stage] for plan in plans]
        methods = {c.method: self.host.make(stage, c.method) for c in picks if c is not None}
        getattr(self, ACTS[stage])(
            [c and methods[c.method] for c in picks], [1.0 if c is None else c.keep for c in picks]
        )

    @torch.no_grad()
    def score(self, accepted: Sequence[Sequence[str]]) -> list[Score]:
        """Each row's accepted answers behind the cache as it is now, in one teacher-forced pass that leaves it so."""
        if "prefill" not in self._done:
            self.prefill()
        return answers.score(self, accepted)

    @torch.no_grad()
    def decode(
        self, compressor: Methods = None, keep: Keeps = 1.0, max_new_tokens: int = 8, **settings: Any
    ) -> list[str]:
        """Answers; a compressor given here is chosen first, see `choose_decode`. Token ids: `generated`.

        Greedy, unless there are settings of transformers' `generate` (`do_sample`, `num_beams`, `stop_strings` ...),
        which come on top of the model's own generation config. Sampling draws from torch's own generator.

        Raises:
            BadInput: settings that cannot be had behind a compressed cache, before anything has run.
        """
        how = read(self.host, settings | {"max_new_tokens": max_new_tokens}) if settings else None
        how = how or greedily(self.host, max_new_tokens)
        if compressor is not None:
            self.choose_decode(compressor, keep)
        if "prefill" not in self._done:
            self.prefill()
        return self.answer(how)

    @torch.no_grad()
    def answer(self, settings: Settings) -> list[str]:
        """Answers behind the cache as it is now, see `decode`."""
        return answers.generate(self, settings)

    @torch.no_grad()
    def follow(self, questions: Sequence[str], replies: Sequence[str] | None = None) -> Pass:
        """The next turn of each row's conversation: a pass behind the caches of this one, which stays as it is.

        What was replied and the new question go behind whatever is left of the prompt; positions go on from the
        uncompressed ones. Caches shrink no further. Then `score`, `decode`, or `follow` again; ledgers go on from this
        pass's. See `next_turn` for another question without the conversation so far.

        Args:
            questions: one for each row, about the same pictures.
            replies: what was answered before; None = what `decode` gave.
        Raises:
            BadInput: not one question and reply for each row, or ones that cannot be put.
        """
        return turns.follow(self, questions, replies)

    def _reach(self, stage: str) -> None:
        """Runs what comes before a stage, untouched. Raises: WrongStop where the stage has passed."""
        at = STAGES.index(stage)
        passed = [s for s in self._done if STAGES.index(s) >= at]
        if passed or (stage == "input" and self.states):
            raise WrongStop(f"{stage}: has passed, the pass stands behind {self.stop!r}")
        for before in STAGES[:at]:
            if before not in self._done:
                getattr(self, ACTS[before])()

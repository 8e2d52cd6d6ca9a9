"""One pass of a batch through a host, stage by stage, with a stop behind each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.compressors.base import STAGES, Compressor
from foveate.compressors.registry import make
from foveate.models import answers, ledger
from foveate.models.acting import Choices, Keeps, Methods, act, chosen, with_cls
from foveate.models.ask import Asker, Trace
from foveate.models.decoder import LayerCache
from foveate.models.errors import BadInput, WrongStop
from foveate.models.host import Score
from foveate.models.inputs import Row
from foveate.models.kv import shrink
from foveate.models.ledger import Ledger
from foveate.models.prefill import Cut, Prefill
from foveate.models.prompt import embed_prompts
from foveate.models.visual import VisualState, groups, stack, unstack
from foveate.plans.plan import Plan, keep_count

if TYPE_CHECKING:
    from foveate.models.llava import LlavaHost


class Pass:
    """Rows on their way: `resize`, `encode`, `thin`, `project`, `prefill`, then `score` or `decode`.

    A stage that was skipped runs untouched when a later one is called. Each takes one compressor for all rows or one
    for each (None = untouched), and keep ratios alike; a ratio of 1 never calls the method.

    Attributes:
        host: the model.
        rows: pictures and questions.
        ledger: what each row has cost so far.
        counts: stage -> visual tokens of each row that left it; "layers" and "decode_layers" -> the same in each layer.
        states: stage -> each row's tokens behind it, up to "projector".
        traces: each row's way through the tower; None for a blind row.
        logits: (B, V) float32 behind the prompt, after `prefill`.
        generated: token ids of the last `decode`, end token included.
    """

    def __init__(self, host: LlavaHost, rows: Sequence[Row]) -> None:
        self.host, self.rows = host, list(rows)
        b = len(self.rows)
        self.ledger = [Ledger() for _ in range(b)]
        self.counts: dict[str, list] = {}
        self.states: dict[str, list[VisualState]] = {}
        self.traces: list[Trace | None] = [None] * b
        self.logits: Tensor | None = None
        self.generated: list[list[int]] = []
        self._blind = [False] * b
        self._grids = [host.grid] * b
        self._opened: Prefill | None = None
        self._caches: list[LayerCache] = []
        self._done: list[str] = []
        self._peeked: list[Trace | None] = [None] * b
        self._guided = STAGES.index("prefill")  # the first stage that another question makes anew
        self.ask = Asker(self)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def stop(self) -> str:
        """The last stage that has passed; "open" before the first."""
        return self._done[-1] if self._done else "open"

    @property
    def tokens(self) -> list[VisualState]:
        """Each row's visual tokens at this stop, up to the projector. Raises: WrongStop before anything has run."""
        if not self.states:
            raise WrongStop("tokens: nothing has run; peek_encoder() or a stage comes first")
        return list(self.states.values())[-1]

    @property
    def n_text(self) -> list[int]:
        """Prompt entries of each row that are no visual tokens, what `Host.forecast` asks for."""
        return [row.n_text for row in self.rows]

    @property
    def opened(self) -> Prefill | None:
        """The prompt in the decoder, after `peek` or `prefill`."""
        return self._opened

    @property
    def caches(self) -> list[LayerCache]:
        """One for each layer, after `prefill`; shrunk after `choose_decode`."""
        return self._caches

    @property
    def cached(self) -> list[list[int]]:
        """Of each row: entries in each layer's cache."""
        lengths = [cache.length.tolist() for cache in self._caches]
        return [[layer[row] for layer in lengths] for row in range(len(self))]

    def blind(self, rows: Sequence[int] | None = None) -> None:
        """Leaves the pictures of these rows (None = all) out altogether. Raises: WrongStop once the tower has run."""
        if self.states:
            raise WrongStop("blind: the encoder has already run")
        for row in range(len(self)) if rows is None else rows:
            self._blind[row] = True

    @torch.no_grad()
    def resize(self, knob: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `input`: smaller pictures; position embeddings are interpolated to the new grid."""
        self._reach("input")
        n = self.host.n_visual
        for row, (method, ratio) in enumerate(self._choices("input", knob, keep)):
            if method is None:
                continue
            count = keep_count(n, ratio)
            self._grids[row] = self.host.resized(method, count)
            self._charge([row], "input", method, n, count)
        self._finish("input", [0 if self._blind[i] else g[0] * g[1] * g[2] for i, g in enumerate(self._grids)])

    @torch.no_grad()
    def peek_encoder(self) -> None:
        """Runs the attention of the first ViT block, so that its tokens can be looked at before `encode`."""
        if "input" not in self._done:
            self.resize()
        if "peek" in self.states:
            return
        tower, states = self.host.tower, [self.host.no_tokens()] * len(self)
        for grid, members in self._grouped(lambda i: self._grids[i], [not b for b in self._blind]):
            x = tower.embed(self.host.pixels([self.rows[i].picture for i in members], grid))
            seeds = torch.tensor([self.rows[i].seed for i in members], device=x.device)
            group = tower.start(members, x, seeds, grid)
            blank = [replace(self.host.no_tokens(), cls_stays=self.host.cls_stays)] * len(members)
            seen = unstack(group.x[:, tower.first :], group.riders, "peek", blank)
            for number, (row, state) in enumerate(zip(members, seen, strict=True)):
                self.traces[row], states[row] = (group, number), state
                ledger.charge_embed(self.ledger[row], self.host.shape, state.n)
                ledger.charge_attention(self.ledger[row], self.host.shape, state.n)
        self.states["peek"], self._peeked = states, list(self.traces)

    @torch.no_grad()
    def encode(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `encoder`: the tower, with reductions inside its blocks."""
        self._reach("encoder")
        self.peek_encoder()
        tower, states = self.host.tower, list(self.states["peek"])
        choices, traces = self._choices("encoder", compressor, keep), list(self.traces)
        key = self._key(choices, states)
        for (method, count, *_), members in self._grouped(lambda i: (*key(i), id(traces[i][0])), [s.n for s in states]):
            start = traces[members[0]][0]
            index = torch.tensor([traces[i][1] for i in members], device=start.x.device)
            group = start.at(index, start.x[index], start.riders.at(index))
            group.rows = members
            sites = self.host.sites("encoder", method, group.riders.n, count)
            for done in tower.run(group, method, sites, self.ask.in_block(method)):
                for row in done.rows:
                    ledger.charge_tower(self.ledger[row], self.host.shape, done.counts, method, dict(sites))
                after = unstack(done.x[:, tower.first :], done.riders, "encoder", [states[row] for row in done.rows])
                for number, (row, state) in enumerate(zip(done.rows, after, strict=True)):
                    cls = done.x[number, 0] if tower.has_cls else None
                    states[row], self.traces[row] = replace(state, cls=cls), (done, number)
        self._finish("encoder", [s.n for s in states], states)

    @torch.no_grad()
    def thin(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `outside`: between tower and projector."""
        self._reach("outside")
        states = list(self.states["encoder"])
        key = self._key(self._choices("outside", compressor, keep), states)
        for (method, count, *_), members in self._grouped(key, [s.n for s in states]):
            if method is None:
                continue
            old = [states[i] for i in members]
            if method.takes_cls and old[0].cls is not None:
                old = [with_cls(state) for state in old]
            x, riders = stack(old, [self.rows[i].seed for i in members])
            signals = self.ask.behind_tower(method, members, x, "outside")
            self._charge(members, "outside", method, riders.n, count)
            for i, state in zip(members, act(method, x, riders, count, signals, "outside", old), strict=True):
                states[i] = state
        self._finish("outside", [s.n for s in states], states)

    @torch.no_grad()
    def project(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `projector`: a method before, after or instead of the projector (its `hook`; without one, after)."""
        self._reach("projector")
        states = list(self.states["outside"])
        key = self._key(self._choices("projector", compressor, keep), states)
        for (method, count, *_), members in self._grouped(key, [s.n for s in states]):
            new = [states[i] for i in members]
            if method is not None and method.takes_cls and new[0].cls is not None:
                new = [with_cls(state) for state in new]
            hook = None if method is None else getattr(method, "hook", "after")
            signals = {}
            if method is not None:
                signals = self.ask.behind_tower(method, members, torch.stack([s.x for s in new]), "projector")
            if hook in (None, "after"):
                new = self._projected(members, new)
            if method is not None:
                x, riders = stack(new, [self.rows[i].seed for i in members])
                self._charge(members, "projector", method, riders.n, count)
                new = act(method, x, riders, count, signals, "projector", new)
            if hook == "before":
                new = self._projected(members, new)
            for i, state in zip(members, new, strict=True):
                states[i] = self._cls_projected(i, replace(state, stage="projector"))
        self._finish("projector", [s.n for s in states], states)

    def _projected(self, members: Sequence[int], states: Sequence[VisualState]) -> list[VisualState]:
        """States behind the projector, in groups of equal n."""
        out = list(states)
        for n, at in groups([s.n for s in states]):
            x = self.host.project(torch.stack([states[i].x for i in at]))
            for i, row in zip(at, x, strict=True):
                out[i] = replace(states[i], x=row)
                ledger.charge_project(self.ledger[members[i]], self.host.shape, n)
        return out

    def _cls_projected(self, row: int, state: VisualState) -> VisualState:
        """A CLS that the decoder reads goes through the projector too; any other ends here."""
        if state.cls is None or not state.cls_stays:
            return replace(state, cls=None)
        ledger.charge_project(self.ledger[row], self.host.shape, 1)
        return replace(state, cls=self.host.project(state.cls[None])[0])

    @torch.no_grad()
    def peek(self) -> None:
        """Runs decoder layer 0, so that its attention can be looked at before `prefill`; no cut precedes layer 1."""
        if self._opened is not None:
            return
        if "projector" not in self._done:
            self.project()
        states = self.states["projector"]
        stream = embed_prompts(self.host.decoder, self.rows, states)
        seeds = torch.tensor([row.seed for row in self.rows], device=stream.x.device)
        self._opened = Prefill(self.host.decoder, stream, seeds, [s.grid for s in states], [s.whole for s in states])
        self._opened.step()
        for row, entries in enumerate(self._opened.entries):
            ledger.charge_layer(self.ledger[row], self.host.shape, entries[0])

    @torch.no_grad()
    def prefill(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `prefill`: the prompt through the decoder; visual tokens leave before the method's layers."""
        self._reach("prefill")
        self.peek()
        run, entered = self._opened, self.counts["projector"]
        cuts: list[Cut | None] = []
        for n, (method, ratio) in zip(entered, self._choices("prefill", compressor, keep), strict=True):
            sites = self.host.sites("prefill", method, n, keep_count(n, ratio)) if n and method is not None else []
            cuts.append(Cut(method, dict(sites)) if sites else None)
        self.logits = run.finish(cuts, self.ask.in_prefill)
        for row, cut in enumerate(cuts):
            method, sites = (None, {}) if cut is None else (cut.compressor, cut.sites)
            ledger.charge_prefill(self.ledger[row], self.host.shape, run.entries[row], run.visual[row], method, sites)
        self._caches = run.caches
        self.counts["layers"] = [list(v) for v in run.visual]
        self._finish("prefill", [v[-1] for v in run.visual])

    @torch.no_grad()
    def choose_decode(self, compressor: Methods = None, keep: Keeps = 1.0) -> None:
        """Stage `decode`: shrinks the cache of every layer; `score` and `decode` go on from what is left."""
        self._reach("decode")
        self._caches = shrink(self, self._caches, self._choices("decode", compressor, keep))
        left = [cache.n.tolist() for cache in self._caches]
        self.counts["decode_layers"] = [[layer[row] for layer in left] for row in range(len(self))]
        for row, entries in enumerate(self.cached):
            ledger.charge_cache(self.ledger[row], self.host.shape, entries)
        self._finish("decode", [layers[-1] for layers in self.counts["decode_layers"]])

    def run(self, plans: Plan | Sequence[Plan]) -> Pass:
        """All stages, the cache's included, by one plan or one for each row; returns itself, to `score` or `decode`."""
        each = [plans] * len(self) if isinstance(plans, Plan) else list(plans)
        if len(each) != len(self):
            raise BadInput(f"run: {len(each)} plans for {len(self)} rows")
        self.blind([i for i, plan in enumerate(each) if plan.is_blind])
        acts = (self.resize, self.encode, self.thin, self.project, self.prefill, self.choose_decode)
        for stage, do in zip(STAGES, acts, strict=True):
            picks = [None if plan.is_blind or plan[stage].is_none else plan[stage] for plan in each]
            methods = {c.method: make(stage, c.method) for c in picks if c is not None}
            do([c and methods[c.method] for c in picks], [1.0 if c is None else c.keep for c in picks])
        return self

    @torch.no_grad()
    def score(self, accepted: Sequence[Sequence[str]]) -> list[Score]:
        """Each row's accepted answers behind the cache as it is now, in one teacher-forced pass that leaves it so."""
        if "prefill" not in self._done:
            self.prefill()
        return answers.score(self, accepted)

    @torch.no_grad()
    def decode(self, compressor: Methods = None, keep: Keeps = 1.0, max_new_tokens: int = 8) -> list[str]:
        """Greedy answers; a compressor given here is chosen first, see `choose_decode`. Token ids: `generated`."""
        if compressor is not None:
            self.choose_decode(compressor, keep)
        if "prefill" not in self._done:
            self.prefill()
        return answers.generate(self, max_new_tokens)

    @torch.no_grad()
    def fork(self, rows: Sequence[int]) -> Pass:
        """An independent pass at the same stop, of these rows; one taken several times can go on by several plans."""
        other = copy.copy(self)
        other.ask = self.ask.fork(other, rows)
        pick: Callable[[list], list] = lambda values: [values[i] for i in rows]  # noqa: E731
        other.rows, other.ledger = pick(self.rows), [self.ledger[i].copy() for i in rows]
        for name in ("traces", "_peeked", "_blind", "_grids"):
            setattr(other, name, pick(getattr(self, name)))
        other.counts = {stage: pick(values) for stage, values in self.counts.items()}
        other.states = {stage: pick(values) for stage, values in self.states.items()}
        other._done, other.generated = list(self._done), []
        index = torch.tensor(list(rows), device=self.host.device)
        other.logits = None if self.logits is None else self.logits[index]
        other._opened = None if self._opened is None else self._opened.at(index)
        other._caches = [cache.at(index) for cache in self._caches]
        return other

    def next_turn(self, questions: Sequence[str]) -> Pass:
        """A pass with other questions about the same pictures, standing before the first stage that a question guides.

        That is `prefill`, or an earlier stage where a text-guided method has acted. Ledgers go on from this pass's.

        Raises:
            BadInput: not one question for each row, or one that cannot be put.
        """
        if len(questions) != len(self):
            raise BadInput(f"next_turn: {len(questions)} questions for {len(self)} rows")
        other, kept = self.fork(range(len(self))), STAGES[: self._guided]
        other.rows = [
            self.host.inputs.asked(row, q, i) for i, (row, q) in enumerate(zip(self.rows, questions, strict=True))
        ]
        other._done = [stage for stage in self._done if stage in kept]
        other.counts = {stage: n for stage, n in other.counts.items() if stage in kept}
        other.states = {stage: s for stage, s in other.states.items() if stage in ("peek", *kept)}
        other.traces = other.traces if "encoder" in kept else other._peeked
        other.ask, other.logits, other._opened, other._caches = Asker(other), None, None, []
        return other

    # -- bookkeeping -------------------------------------------------------------------------------------------------

    def _reach(self, stage: str) -> None:
        """Runs what comes before a stage, untouched. Raises: WrongStop where the stage has passed."""
        at = STAGES.index(stage)
        passed = [s for s in self._done if STAGES.index(s) >= at]
        if passed or (stage == "input" and self.states):
            raise WrongStop(f"{stage}: has passed, the pass stands behind {self.stop!r}")
        acts = (self.resize, self.encode, self.thin, self.project, self.prefill)
        for before, act_untouched in zip(STAGES[:at], acts, strict=False):
            if before not in self._done:
                act_untouched()

    def _finish(self, stage: str, counts: list[int], states: list[VisualState] | None = None) -> None:
        self._done.append(stage)
        self.counts[stage] = counts
        if states is not None:
            self.states[stage] = states
        for row, n in enumerate(counts):
            self.ledger[row].tokens[stage] = n

    def _choices(self, stage: str, methods: Methods, keeps: Keeps) -> Choices:
        """(method, ratio) of each row, see `chosen`; remembers which stage a question guides first."""
        found = chosen(stage, methods, keeps, self._blind)
        if any(method is not None and method.text_guided for method, _ in found):
            self._guided = min(self._guided, STAGES.index(stage))
        return found

    @staticmethod
    def _key(choices: Choices, states: Sequence[VisualState]) -> Callable[[int], tuple]:
        """What rows of one call share: (method, count, n, grid, whole). A count that removes nothing is no method."""

        def key(row: int) -> tuple[Hashable, ...]:
            (method, ratio), state = choices[row], states[row]
            count = keep_count(state.n, ratio)
            if count >= state.n:
                method, count = None, state.n
            return method, count, state.n, state.grid, state.whole, method is not None and state.cls is not None

        return key

    def _grouped(self, key: Callable[[int], Hashable], where: Sequence[object]) -> Iterator[tuple[tuple, list[int]]]:
        """(key, rows) of the rows where `where` is true."""
        rows = [i for i, yes in enumerate(where) if yes]
        for found, members in groups([key(i) for i in rows]):
            yield found, [rows[m] for m in members]

    def _charge(self, rows: Sequence[int], stage: str, method: Compressor, n: int, count: int) -> None:
        """A method's own arithmetic on each row's ledger."""
        for row in rows:
            self.ledger[row].add(stage, method.name, ledger.method_flops(method, self.host.shape, stage, n, count))

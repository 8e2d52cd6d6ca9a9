"""A batched worker: many inputs under many plans on one host, with everything shared that plans have in common.

Requests form a prefix tree. One pass goes through the stages for all of them; behind each stage it is forked where
plans part, so what they agree on runs once. Behind the projector rows are sorted by their number of visual tokens,
since a batch of the decoder is as long as its longest row, and go on in batches of limited size, which also bounds the
memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveate.envs.inputs import Input
from foveate.envs.live import Bill, Reference, Verdict, judge, look
from foveate.envs.masks import ANSWER_TOKENS, STOP_GROUP
from foveate.envs.quality import outcome_of
from foveate.plans.plan import NONE, STAGES, UNCOMPRESSED, Plan

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.inputs import PromptShape
    from foveate.models.passes import Pass


@dataclass(frozen=True, eq=False)
class Ask:
    """One request: run a plan on an input up to a stop, or to the end.

    Attributes:
        input: picture and question.
        plan: decisions; those at the stop and behind it are not read.
        stop: a stage whose decision is due; None = to the end.
    """

    input: Input
    plan: Plan = UNCOMPRESSED
    stop: str | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """What stands at a stop.

    Attributes:
        features: (d,) float32 that the stop reveals; None where it reveals nothing.
        bill: FLOPs so far, with these features.
        tokens_left: share of visual tokens still there.
    """

    features: np.ndarray | None
    bill: Bill
    tokens_left: float


Answer = Seen | Verdict


PREFILL = STAGES.index("prefill")


def before(plan: Plan, stage: int) -> Plan:
    """The decisions of a plan before stage number `stage`."""
    return Plan(plan.choices[:stage] + (NONE,) * (len(STAGES) - stage))


class Worker:
    """Runs requests on one host.

    Args:
        host: the model.
        answer_tokens: length of the answer that costs count.
        batch: most inputs in a pass, and most rows in the decoder.
    Raises:
        ValueError: batch below 1.
    """

    def __init__(self, host: Host, answer_tokens: int = ANSWER_TOKENS, batch: int = 48) -> None:
        if batch < 1:
            raise ValueError(f"batch = {batch} is below 1")
        self.host, self.answer_tokens, self.batch = host, answer_tokens, batch

    def shapes(self, inputs: Sequence[Input]) -> list[PromptShape]:
        """What costs depend on, of each input."""
        return self.host.open([i.image for i in inputs], [i.question for i in inputs]).shapes

    def references(self, inputs: Sequence[Input], max_new_tokens: int = 8) -> list[Reference]:
        """What the uncompressed model says about each input, greedily, and how sure it is."""
        out = []
        for part in _parts(inputs, self.batch):
            p = self.host.open([i.image for i in part], [i.question for i in part])
            said = p.decode(max_new_tokens=max_new_tokens)
            scores = p.score([[answer] for answer in said])
            out += [Reference(answer, outcome_of(score, 1).prob) for answer, score in zip(said, scores, strict=True)]
        return out

    def run(self, asks: Sequence[Ask], references: dict[int, Reference] | None = None) -> list[Answer]:
        """Answers to requests, in their order: `Seen` at a stop, `Verdict` at the end.

        Args:
            asks: requests; equal ones run once.
            references: id(input) -> its reference, for inputs whose own answer is to be scored too.
        """
        out: list[Answer | None] = [None] * len(asks)
        inputs = list({id(ask.input): ask.input for ask in asks}.values())
        for part in _parts(inputs, self.batch):
            number = {id(each): place for place, each in enumerate(part)}
            mine = [i for i, ask in enumerate(asks) if id(ask.input) in number]
            tree = _Tree(self, part, references or {})
            leaves = [(number[id(asks[i].input)], asks[i].plan, asks[i].stop) for i in mine]
            for i, answer in zip(mine, tree.answers(leaves), strict=True):
                out[i] = answer
        return out


Node = tuple[int, int]
"""(number of the input, number of the decisions so far)."""


@dataclass(frozen=True)
class _Leaf:
    """One distinct request.

    Attributes:
        way: its node before each stage and behind the last.
        stop: number of the stage it stops at; 6 = at the end.
    """

    way: tuple[Node, ...]
    stop: int

    @property
    def key(self) -> tuple[Node, int]:
        return self.way[self.stop], self.stop


class _Tree:
    """The requests on some inputs, walked stage by stage. Prefixes of plans are numbered: cheap to compare."""

    def __init__(self, worker: Worker, inputs: Sequence[Input], references: dict[int, Reference]) -> None:
        self.worker, self.inputs, self.references = worker, inputs, references
        self.prefixes: dict[Plan, int] = {UNCOMPRESSED: 0}
        self.plans: list[Plan] = [UNCOMPRESSED]
        self.chains: dict[Plan, tuple[int, ...]] = {}
        self.found: dict[tuple[Node, int], Answer] = {}
        self.leaves: list[_Leaf] = []

    def answers(self, asks: Sequence[tuple[int, Plan, str | None]]) -> list[Answer]:
        """The answer to each (number of the input, plan, stop)."""
        leaves = [self._leaf(*ask) for ask in asks]
        self.leaves = list({leaf.key: leaf for leaf in leaves}.values())
        p = self.worker.host.open([i.image for i in self.inputs], [i.question for i in self.inputs])
        nodes: list[Node] = [(i, 0) for i in range(len(self.inputs))]
        for stage in range(PREFILL):
            p, nodes = self._step(p, nodes, stage)
        for rows in self._by_length(p, nodes):
            self._decoder(p.fork(rows), [nodes[row] for row in rows])
        return [self.found[leaf.key] for leaf in leaves]

    def _leaf(self, i: int, plan: Plan, stop: str | None) -> _Leaf:
        if plan not in self.chains:
            self.chains[plan] = tuple(self._number(before(plan, stage)) for stage in range(len(STAGES) + 1))
        way = tuple((i, prefix) for prefix in self.chains[plan])
        return _Leaf(way, len(STAGES) if stop is None else STAGES.index(stop))

    def _number(self, prefix: Plan) -> int:
        if prefix not in self.prefixes:
            self.prefixes[prefix] = len(self.plans)
            self.plans.append(prefix)
        return self.prefixes[prefix]

    def _step(self, p: Pass, nodes: list[Node], stage: int) -> tuple[Pass, list[Node]]:
        """Answers what stops at a stage and runs it for the rest; the pass is forked where plans part."""
        self._stop(p, nodes, stage)
        ways = self._ways(nodes, stage)
        if ways:
            p = _forked(p, list(ways.values()))
            p.run_stage(STAGES[stage], [self.plans[prefix] for _, prefix in ways])
        return p, list(ways)

    def _ways(self, nodes: list[Node], stage: int) -> dict[Node, int]:
        """Each way to go on at a stage -> the row that it goes on from."""
        parent = {node: row for row, node in enumerate(nodes)}
        going = [leaf.way for leaf in self.leaves if leaf.stop > stage and leaf.way[stage] in parent]
        return {way[stage + 1]: parent[way[stage]] for way in going}

    def _stop(self, p: Pass, nodes: list[Node], stage: int) -> None:
        """Answers the requests that stop at a stage."""
        here = {leaf.way[stage] for leaf in self.leaves if leaf.stop == stage}
        rows = [row for row, node in enumerate(nodes) if node in here]
        if not rows:
            return
        name = STAGES[stage]
        if name == "encoder":
            p.peek_encoder()  # before the fork, so that it serves those that go on too
        part = p.fork(rows)
        features = look(part, name) if name in STOP_GROUP else [None] * len(rows)
        whole = [row.shape.n_tokens for row in p.rows]
        left = p.counts[STAGES[stage - 1]] if stage else whole
        for number, row in enumerate(rows):
            bill, share = Bill.of(part.ledger[number]), left[row] / whole[row]
            self.found[nodes[row], stage] = Seen(features[number], bill, share)

    def _by_length(self, p: Pass, nodes: list[Node]) -> Iterator[list[int]]:
        """Rows with equal numbers of visual tokens, in batches; long ones first."""
        if nodes:
            counts = p.counts["projector"]
            for _, rows in sorted(_grouped(counts).items(), reverse=True):
                yield from _parts(rows, self.worker.batch)

    def _decoder(self, p: Pass, nodes: list[Node]) -> None:
        """The last two stages of some rows, and the verdicts."""
        p.peek()
        self._stop(p, nodes, PREFILL)
        ways = self._ways(nodes, PREFILL)
        each = list(ways)
        for members in _grouped([self.plans[prefix]["prefill"] for _, prefix in each]).values():
            part = [each[m] for m in members]
            q = p.fork([ways[node] for node in part])  # rows that shrink alike, so that none waits for a longer one
            q.run_stage("prefill", [self.plans[prefix] for _, prefix in part])
            q, ends = self._step(q, part, PREFILL + 1)
            if ends:
                self._judge(q, ends)

    def _judge(self, p: Pass, ends: Sequence[Node]) -> None:
        """The verdicts on rows behind their last stage."""
        inputs = [self.inputs[i] for i, _ in ends]
        own = [self.references[id(each)].answer if id(each) in self.references else None for each in inputs]
        for node, verdict in zip(ends, judge(p, inputs, own, self.worker.answer_tokens), strict=True):
            self.found[node, len(STAGES)] = verdict


def _forked(p: Pass, rows: list[int]) -> Pass:
    """The pass of these rows; itself where they are all of it in order."""
    return p if rows == list(range(len(p))) else p.fork(rows)


def _parts(values: Sequence, size: int) -> Iterator[Sequence]:
    """Runs of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _grouped(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Key -> indices that have it, in order of first appearance."""
    out: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        out.setdefault(key, []).append(index)
    return out

"""How long plans take beside the uncompressed pass: to the first token of an answer, and for each further one.

Every pass of a plan follows an uncompressed one of the same rows, and what counts is the ratio of the two: absolute
times of a shared machine would mean nothing. What the caches take is read off their memory in the same passes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from foveate.analysis.machine import machine, settle
from foveate.envs.inputs import Input
from foveate.models.behind import Continuation
from foveate.models.host import Host
from foveate.plans.plan import STAGES, UNCOMPRESSED, Plan
from foveate.rollouts.bar import bar

TOKENS = 16
"""Tokens behind the first that are decoded, whatever they are: no end ends them."""


@dataclass(frozen=True)
class Times:
    """One pass.

    Attributes:
        first: seconds up to the first token of every row's answer: picture, choosing, prompt, choosing in the cache.
        token: seconds of each further one; None = there were none.
        kv_prefill: bytes of all caches behind the prompt, before any choosing in them.
        kv_end: the same at the end, the answer's tokens included; the last one has not been fed.
        said: the tokens of each row.
    """

    first: float
    token: float | None
    kv_prefill: int
    kv_end: int
    said: list[list[int]]


@dataclass(frozen=True)
class Wall:
    """One plan at one batch.

    Attributes:
        first, token: shares of the uncompressed times, see `Times`; medians over rounds. None = not measured.
        kv_prefill, kv_end: bytes a row, means over rounds; rows of a batch are padded to the longest.
    """

    first: float
    token: float | None
    kv_prefill: float
    kv_end: float


@torch.no_grad()
def timed(host: Host, asked: Sequence[Input], plan: Plan, tokens: int = TOKENS) -> Times:
    """One pass of some rows by a plan, and so many greedy tokens behind the first of each answer."""
    device = host.device
    settle(device)
    start = time.perf_counter()
    p = host.open([each.image for each in asked], [each.question for each in asked])
    for stage in STAGES:
        p.run_stage(stage, [plan] * len(asked))
        if stage == "prefill":
            behind = sum(cache.bytes for cache in p.caches)
    said = [p.logits.argmax(-1)]
    said[0].tolist()  # whoever waits for the token has it now
    first = time.perf_counter() - start
    start = time.perf_counter()
    run = Continuation(host.decoder, p.caches, torch.arange(len(asked), device=p.logits.device))
    for _ in range(tokens):
        said.append(host.decoder.logits(run.feed(said[-1][:, None])[:, -1]).argmax(-1))
    ids = torch.stack(said, dim=1).tolist()
    each = (time.perf_counter() - start) / tokens if tokens else None
    return Times(first, each, behind, sum(cache.bytes for cache in run.caches()), ids)


def paired(host: Host, asked: Sequence[Input], plan: Plan, tokens: int) -> Wall:
    """A pass by a plan behind an uncompressed one of the same rows."""
    full, own = (timed(host, asked, each, tokens) for each in (UNCOMPRESSED, plan))
    token = None if own.token is None else own.token / full.token
    return Wall(own.first / full.first, token, own.kv_prefill / len(asked), own.kv_end / len(asked))


def median(walls: Sequence[Wall]) -> Wall:
    """Of the times; of the bytes the mean."""
    token = None if walls[0].token is None else statistics.median(wall.token for wall in walls)
    first = statistics.median(wall.first for wall in walls)
    bytes_ = (statistics.fmean(getattr(wall, name) for wall in walls) for name in ("kv_prefill", "kv_end"))
    return Wall(first, token, *bytes_)


def wall_times(
    host: Host,
    inputs: Sequence[Input],
    plans: Sequence[Plan],
    rounds: int,
    path: Path,
    batches: Sequence[int] = (1,),
    decoded: Container[Plan] = (),
) -> dict[Plan, dict[int, Wall]]:
    """Plan -> batch -> what it takes. Round r asks the r-th so many inputs; where there are fewer, they come again.

    What the file has of this host, machine and number of rounds is not timed again.

    Args:
        host: the model.
        inputs: what to ask, in turn.
        plans: to time.
        rounds: that count, behind a pass that warms up.
        path: JSON file of what was timed.
        batches: rows that run together.
        decoded: plans that also decode, at every batch; the others are timed up to the first token, at the first.
    """
    about = {"host": host.fingerprint, "rounds": rounds, "machine": machine(), "device": str(host.device)}
    about |= {"threads": torch.get_num_threads(), "tokens": TOKENS}
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = stored["times"] if stored.get("about") == about else {}
    found: dict[Plan, dict[int, Wall]] = {plan: {} for plan in plans}
    for batch in batches:
        there = known.setdefault(str(batch), {})
        wanted = {plan: TOKENS * (plan in decoded) for plan in plans if plan in decoded or batch == batches[0]}
        todo = {plan: n for plan, n in wanted.items() if _lacks(there.get(plan.label()), n)}
        there |= {plan.label(): asdict(wall) for plan, wall in _timed(host, inputs, todo, rounds, batch).items()}
        path.write_text(json.dumps({"about": about, "times": known}, indent=1) + "\n", encoding="utf-8")
        for plan in wanted:
            found[plan][batch] = Wall(**there[plan.label()])
    return found


def _lacks(stored: dict[str, float | None] | None, tokens: int) -> bool:
    return stored is None or (tokens > 0 and stored["token"] is None)


def _timed(host: Host, inputs: Sequence[Input], todo: dict[Plan, int], rounds: int, batch: int) -> dict[Plan, Wall]:
    """Some plans at one batch; with the number of tokens that each decodes."""
    if todo:
        timed(host, [inputs[i % len(inputs)] for i in range(batch)], UNCOMPRESSED, max(todo.values()))
    walls: dict[Plan, list[Wall]] = {plan: [] for plan in todo}
    with bar(f"timing, batch {batch}", rounds * len(todo), "passes", bool(todo)) as advance:
        for turn in range(rounds):
            asked = [inputs[(turn * batch + i) % len(inputs)] for i in range(batch)]
            for plan, tokens in todo.items():
                walls[plan].append(paired(host, asked, plan, tokens))
                advance(1)
    return {plan: median(each) for plan, each in walls.items()}

"""Fills a replay table: every input under every plan, in shards that survive an interruption."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.controller.features import PIXEL_FEATURES, QUESTION_FEATURES, question_features
from foveate.controller.motion import TIME_FEATURES, as_wide, shown_features
from foveate.envs.inputs import Input, inputs_of
from foveate.envs.live import token_features
from foveate.envs.masks import ANSWER_TOKENS, STOP_GROUP, Masks
from foveate.envs.quality import check_answers
from foveate.models.errors import BadInput
from foveate.plans.masks import plan_refusal
from foveate.plans.plan import BLIND, STAGES, UNCOMPRESSED, Plan
from foveate.plans.portfolio import ActionTable, Portfolio, all_plans
from foveate.rollouts.bar import bar
from foveate.rollouts.table import Table
from foveate.rollouts.worker import Ask, Worker
from foveate.tasks.base import Sample
from foveate.tasks.clip import Clip

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.inputs import PromptShape

SHARD = 48
"""Inputs in a shard: what an interruption can cost, and what goes through the host together."""


def legal_plans(host: Host, portfolio: Portfolio, shapes: Iterable[PromptShape] = ()) -> list[Plan]:
    """The plans of a portfolio that a host can run, the uncompressed one first and the blind one among them.

    Args:
        host: an opened model.
        portfolio: what is on offer.
        shapes: of rows that every plan must run on, beside a usual one where they are not all videos.
    """
    masks, plans = Masks(host, ActionTable.from_portfolio(portfolio)), all_plans(portfolio)
    for shape in with_usual(host, shapes):
        rules = masks.rules(shape)
        plans = [plan for plan in plans if plan_refusal(plan, rules, portfolio.max_active_stages) is None]
    return plans if BLIND in plans else [*plans[:1], BLIND, *plans[1:]]


def with_usual(host: Host, shapes: Iterable[PromptShape]) -> list[PromptShape]:
    """These shapes, behind that of a usual picture where they are not all of videos."""
    shapes = list(shapes)
    return shapes if shapes and all(shape.frames > 1 for shape in shapes) else [host.prompt_shape(1), *shapes]


def layouts(host: Host, inputs: Iterable[Input]) -> list[PromptShape]:
    """What the pictures of some inputs are to a host: the distinct shapes of their rows, the number of words apart.

    Raises:
        ValueError: an input that cannot be put to the model, with its id.
    """
    sizes: set[tuple[Any, ...]] = set()
    found: dict[PromptShape, None] = {}
    for each in inputs:
        size = tuple(one.frames.shape if isinstance(one, Clip) else one.shape for one in each.images)
        try:
            if size in sizes:
                host.inputs.prompt(each.question, 0, ["video" if each.film else "image"] * len(each.images))
                continue
            shape = host.open([each.image], [each.question]).shapes[0]
        except BadInput as error:
            raise ValueError(f"{each.id}: {error}") from None
        sizes.add(size)
        found[shape.bare] = None
    return list(found)


def fill(
    host: Host | str | Path,
    samples: Iterable[Sample | Input],
    plans: Portfolio | Sequence[Plan],
    out: str | Path,
    *,
    workers: int = 0,
    label_free: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    shard: int = SHARD,
    progress: bool = True,
    meta: dict[str, Any] | None = None,
    video: bool | None = None,
) -> Table:
    """The table of some inputs under some plans, saved at `out`.

    Shards lie in `<out>.parts` until the table is whole: called again with the same arguments after an interruption,
    what is done is not done again, and the table comes out the same, bit for bit.

    Args:
        host: an opened model, or what `load_host` takes.
        samples: samples (each of their turns is an input) or inputs.
        plans: a portfolio (all of its plans that the host can run on every input, and the blind one), or plans, the
            uncompressed one first.
        out: Parquet file to write.
        workers: Ray actors that fill shards, each with a host of its own; 0 = this process.
        label_free: also record min(p_plan(y0), p_full(y0)) of the uncompressed model's own answer y0.
        answer_tokens: length of the answer that costs count.
        shard: inputs in a shard.
        progress: show a bar on stderr.
        meta: more to write into the table's meta, plain data.
        video: record the time features of videos, 0 for pictures; None = where there is a video among the inputs.
    Raises:
        ValueError: no input, one without accepted answers (where not `label_free`), one that the model cannot be asked,
            a plan that the host cannot run on all of them, or `out` holds the table of other inputs, plans or another
            host.
    """
    host = _opened(host)
    inputs = list(_inputs(samples))
    _check(inputs, label_free)
    shapes = layouts(host, inputs)
    chosen = legal_plans(host, plans, shapes) if isinstance(plans, Portfolio) else list(plans)
    _check_plans(host, chosen, shapes)
    about = _about(host, plans, answer_tokens, meta)
    key = _key(about, inputs, chosen, label_free, shard)
    out = Path(out)
    if out.is_file():
        return _ours(out, key)
    parts = out.with_name(out.name + ".parts")
    cuts = {
        parts / f"{start // shard:05d}.parquet": inputs[start : start + shard] for start in range(0, len(inputs), shard)
    }
    todo = [path for path in cuts if not _is_done(path, key)]
    jobs = ((path, cuts[path]) for path in todo)
    video = any(each.film for each in inputs) if video is None else video
    job = _Job(tuple(chosen), label_free, answer_tokens, about | {"key": key}, video)
    with bar("replay", len(inputs), "inputs", progress) as advance:
        advance(len(inputs) - sum(len(cuts[path]) for path in todo))
        for path, table in _filled(host, job, jobs, workers):
            table.save(path)
            advance(table.n)
    whole = Table.concat([Table.load(path) for path in cuts])
    whole.save(out)
    shutil.rmtree(parts)
    return whole


class _Job:
    """What is the same for every shard; small enough to be sent to a worker."""

    def __init__(
        self, plans: tuple[Plan, ...], label_free: bool, answer_tokens: int, meta: dict[str, Any], video: bool = False
    ) -> None:
        self.plans, self.label_free, self.answer_tokens, self.meta = plans, label_free, answer_tokens, meta
        self.video = video

    def run(self, host: Host, inputs: Sequence[Input]) -> Table:
        """The table of some inputs."""
        worker = Worker(host, self.answer_tokens, batch=max(1, len(inputs)))
        references = dict(zip(map(id, inputs), worker.references(inputs), strict=True)) if self.label_free else {}
        ends = [Ask(each, plan) for each in inputs for plan in self.plans]
        stops = [Ask(each, UNCOMPRESSED, stage) for each in inputs for stage in STAGES]
        found = worker.run(ends + stops, references)
        shape = (len(inputs), len(self.plans))
        verdicts, seen = found[: len(ends)], np.array(found[len(ends) :], dtype=object).reshape(-1, len(STAGES))
        own = None
        if self.label_free:
            sure = np.array([references[id(each)].prob for each in inputs])
            own = np.minimum(np.reshape([v.outcome.own for v in verdicts], shape), sure[:, None])
        groups, names, costs = _features(inputs, seen, self.video)
        return Table(
            ids=[each.id for each in inputs],
            regimes=[each.regime for each in inputs],
            families=[each.family for each in inputs],
            templates=[each.template for each in inputs],
            splits=[each.split for each in inputs],
            questions=[each.question for each in inputs],
            plans=self.plans,
            correct=np.reshape([v.outcome.correct for v in verdicts], shape),
            prob=np.reshape([v.outcome.prob for v in verdicts], shape),
            cost=np.reshape([v.bill.own for v in verdicts], shape),
            tokens=np.reshape([v.tokens for v in verdicts], shape),
            kv=np.reshape([v.kv for v in verdicts], shape),
            groups=groups,
            group_names=names,
            group_cost=costs,
            meta=self.meta,
            label_free=own,
            reach=[[each.bill.own for each in row] for row in seen],
        )


def _features(
    inputs: Sequence[Input], seen: np.ndarray, video: bool
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]], dict[str, float]]:
    """Groups, their names and their mean FLOPs; `seen` (N, 6) holds what stands at each stop."""
    names = {"pixels": PIXEL_FEATURES + TIME_FEATURES * video, "question": QUESTION_FEATURES}
    groups = {
        "pixels": np.stack([as_wide(shown_features(each.image), len(names["pixels"])) for each in inputs]),
        "question": np.stack([question_features(each.question) for each in inputs]),
    }
    costs = {"pixels": 0.0, "question": 0.0}
    for stop, group in STOP_GROUP.items():
        column = seen[:, STAGES.index(stop)]
        groups[group] = np.stack([each.features for each in column])
        names[group] = tuple(token_features()[group])
        costs[group] = float(np.mean([each.bill.features for each in column]))
    return groups, names, costs


def _filled(
    host: Host, job: _Job, jobs: Iterable[tuple[Path, Sequence[Input]]], workers: int
) -> Iterator[tuple[Path, Table]]:
    """(path, table) of each shard, in order."""
    if workers == 0:
        for path, inputs in jobs:
            yield path, job.run(host, inputs)
        return
    from foveate.rollouts.ray_pool import RaySettings, map_on_hosts  # ray is slow to import

    yield from map_on_hosts(host, job.run, jobs, RaySettings(workers))


def _opened(host: Host | str | Path) -> Host:
    if isinstance(host, str | Path):
        from foveate.models import load_host

        return load_host(host)
    return host


def _inputs(samples: Iterable[Sample | Input]) -> Iterator[Input]:
    for each in samples:
        if isinstance(each, Input):
            yield each
        else:
            yield from inputs_of([each])


def _check(inputs: Sequence[Input], label_free: bool) -> None:
    """Raises: ValueError, see `fill`."""
    if not inputs:
        raise ValueError("samples is empty, a table needs at least one input")
    for each in inputs:
        check_answers(each.id, each.answers, "label_free" if label_free else "exact")


def _check_plans(host: Host, plans: Sequence[Plan], shapes: Sequence[PromptShape]) -> None:
    """Raises: ValueError, see `fill`."""
    if plans[:1] != [UNCOMPRESSED]:
        raise ValueError("plans must start with the uncompressed one")
    for plan in plans:
        try:
            for shape in with_usual(host, shapes):
                host.forecast(plan, shape)
        except ValueError as error:
            raise ValueError(f"plan {plan.label()}: {error}") from None


def _about(
    host: Host, plans: Portfolio | Sequence[Plan], answer_tokens: int, meta: dict[str, Any] | None
) -> dict[str, Any]:
    """The table's meta."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    about = {"host": host.name, "fingerprint": host.fingerprint, "answer_tokens": answer_tokens, "versions": versions}
    if isinstance(plans, Portfolio):
        about["portfolio"] = plans.to_dict()
    return about | (meta or {})


def identity(host: Host, inputs: Sequence[Input], answer_tokens: int = ANSWER_TOKENS) -> str:
    """SHA-256 of what every column of a table depends on beside its plan: the host and the inputs."""
    return _key({"fingerprint": host.fingerprint, "answer_tokens": answer_tokens}, inputs, (), False, 0)


def _key(about: dict[str, Any], inputs: Sequence[Input], plans: Sequence[Plan], label_free: bool, shard: int) -> str:
    """SHA-256 of all that the table's numbers depend on."""
    said = [about["fingerprint"], about["answer_tokens"], label_free, shard, [plan.to_dict() for plan in plans]]
    digest = hashlib.sha256(json.dumps(said).encode())
    for each in inputs:
        digest.update(json.dumps([each.id, each.question, each.answers]).encode())
        if len(each.images) > 1 or each.film:
            digest.update(repr([_measures(one) for one in each.images]).encode())
        for one in each.images:
            digest.update(np.ascontiguousarray(one.frames if isinstance(one, Clip) else one).tobytes())
    return digest.hexdigest()


def _measures(one: np.ndarray | Clip) -> tuple[Any, ...]:
    """Size of a picture; of a video, that of its frames, and when they are shown."""
    return (*one.frames.shape, *one.seconds.tolist(), one.duration) if isinstance(one, Clip) else one.shape


def _ours(path: Path, key: str) -> Table:
    """The table of a file. Raises: ValueError where it was filled with something else."""
    table = Table.load(path)
    if table.meta.get("key") != key:
        raise ValueError(f"{path}: holds a table of other inputs, plans or another host; remove it or write elsewhere")
    return table


def _is_done(path: Path, key: str) -> bool:
    """Whether a shard is there and whole; shards are written at one stroke, so another key is another table's."""
    return path.is_file() and _ours(path, key).n > 0

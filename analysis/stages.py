"""Which plans a bench of some stages compares, the table that grows with them, and the page it becomes.

Every method of a stage stands beside the same controls at the same ratios: `random`, also numbered anew, and `stride`,
`downsample` at the pixels, on videos `frames` too, and the blind plan. The table keeps the plans that it has: another
method, stage or ratio on the same inputs costs what it adds, and an interruption what one shard holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.analysis.bench import RATIOS, Row, bench_plans, markdown, times
from foveate.analysis.machine import in_words, machine
from foveate.analysis.walls import TOKENS
from foveate.envs.inputs import Input
from foveate.models.fingerprint import fingerprint
from foveate.models.host import Host
from foveate.models.inputs import PromptShape
from foveate.plans.plan import BLIND, STAGES, UNCOMPRESSED, Plan
from foveate.policies.export import library_versions
from foveate.rollouts.replay import fill, identity
from foveate.rollouts.table import Table

CONTROLS = (
    ("input", "downsample"),
    ("input", "frames"),
    ("outside", "random"),
    ("outside", "random_renumbered"),
    ("outside", "stride"),
)
"""What every stage is compared with."""

OWN_CONTROLS = ("random", "stride")
"""And these where the stage has them."""

DECODED = ("prefill", "decode")
"""Stages whose methods are also judged by the tokens behind the first, and by the caches."""

COLUMNS = ("correct", "prob", "cost", "tokens", "kv")
"""Fields of a table with a column for each plan."""


def stage_plans(
    host: Host,
    stages: Sequence[str] = STAGES,
    ratios: Sequence[float] = RATIOS,
    methods: Sequence[str] | None = None,
    shapes: Sequence[PromptShape] = (),
    nearest: bool = False,
) -> tuple[list[Plan], dict[str, str]]:
    """The plans of some stages and their controls that a host can run; and label -> reason for those of the stages that
    it cannot. Arguments: as of `bench_plans`; where a method stands at another ratio, `random` does so too."""
    chosen, refused = bench_plans(host, stages, ratios, methods, shapes, nearest)
    others = {choice.keep for plan in chosen[1:-1] for _, choice in plan.active} - set(ratios)
    for stage in dict.fromkeys(("outside", *stages)):
        chosen += bench_plans(host, (stage,), sorted(others), ("random",), shapes)[0]
    for stage in stages if methods is not None else ():
        chosen += bench_plans(host, (stage,), ratios, OWN_CONTROLS, shapes)[0]
    for stage, name in CONTROLS:
        chosen += bench_plans(host, (stage,), ratios, (name,), shapes)[0]
    plans = sorted({plan for plan in chosen if plan not in (UNCOMPRESSED, BLIND)}, key=_place)
    return [UNCOMPRESSED, *plans, BLIND], refused


def _place(plan: Plan) -> tuple[int, float, bool, str]:
    """By stage, falling ratio, controls first, name."""
    ((stage, choice),) = plan.active
    control = choice.method in OWN_CONTROLS or (stage, choice.method) in CONTROLS
    return STAGES.index(stage), -choice.keep, not control, choice.method


def grown(host: Host, inputs: Sequence[Input], plans: Sequence[Plan], path: Path, workers: int = 0) -> Table:
    """The table of some inputs under some plans; what the file has is read from it, what it lacks is run and added.

    Args:
        host: the model.
        inputs: what to ask.
        plans: the uncompressed one first.
        path: the Parquet file.
        workers: see `fill`.
    Raises:
        ValueError: `path` holds a table of other inputs or another host; it is left as it is.
    """
    about = {"inputs": identity(host, inputs), "weights": _weights(host, plans)}
    have = _of_these(path, about) if path.is_file() else None
    lacking = [plan for plan in plans[1:] if have is None or plan not in have.column]
    if have is None or lacking:
        name = hashlib.sha256(json.dumps([plan.to_dict() for plan in lacking]).encode()).hexdigest()[:12]
        part = path.with_name(f"{path.stem}.{name}.parquet")  # under its own name, so that it resumes by itself
        more = fill(host, inputs, [UNCOMPRESSED, *lacking], part, workers=workers, meta=about)
        have = more if have is None else joined(have, more)
        have.save(path)
        part.unlink()
    return columns(have, [have.column[plan] for plan in plans])


def _weights(host: Host, plans: Iterable[Plan]) -> dict[str, str]:
    """Digests of the learned methods' networks among some plans."""
    used = {(stage, choice.method) for plan in plans for stage, choice in plan.active}
    return {f"{s}:{name}": fingerprint({}, host.learned[s, name]) for s, name in sorted(used & set(host.learned))}


def _of_these(path: Path, about: Mapping[str, Any]) -> Table:
    """The table of a file, without the plans of learned methods that have been trained anew since.

    Raises:
        ValueError: it is of other inputs or another host.
    """
    table = Table.load(path)
    if table.meta.get("inputs") != about["inputs"]:
        raise ValueError(f"{path}: holds a table of other inputs or another host; remove it or write elsewhere")
    before = table.meta["weights"]
    stale = {name for name, digest in about["weights"].items() if before.get(name, digest) != digest}
    names = [{f"{stage}:{choice.method}" for stage, choice in plan.active} for plan in table.plans]
    return columns(table, [column for column, used in enumerate(names) if not used & stale])


def columns(table: Table, index: Sequence[int]) -> Table:
    """A table of some of the plans, in the order given."""
    cut = {name: getattr(table, name)[:, list(index)] for name in COLUMNS}
    return replace(table, plans=tuple(table.plans[i] for i in index), **cut)


def joined(first: Table, second: Table) -> Table:
    """A table of both tables' plans, the uncompressed one once; the inputs are the same."""
    both = {name: np.concatenate([getattr(first, name), getattr(second, name)[:, 1:]], axis=1) for name in COLUMNS}
    meta = first.meta | {"weights": first.meta["weights"] | second.meta["weights"]}
    return replace(first, plans=first.plans + second.plans[1:], meta=meta, **both)


def decoded(plans: Iterable[Plan], stages: Sequence[str]) -> set[Plan]:
    """Those of some plans that stand in a section with decoding."""
    return {plan for plan in plans if any(_belongs(plan, stage) for stage in stages if stage in DECODED)}


def page(
    rows: Sequence[Row],
    stages: Sequence[str],
    host: Host,
    table: Table,
    header: Mapping[str, Any],
    refused: Mapping[str, str] | None = None,
) -> str:
    """The Markdown page: what was measured on what, a table for each stage with its controls, and what was not run.

    Args:
        rows: of all plans.
        stages: in the order of the sections.
        host: the model.
        table: what the rows were made from.
        header: command, seed, rounds, batches, nearest.
        refused: label -> reason, see `stage_plans`.
    """
    regimes, numbers = np.unique(table.regimes, return_counts=True)
    asked = ", ".join(f"{regime} {number}" for regime, number in zip(regimes, numbers, strict=True))
    versions = in_words(library_versions(("torch", "transformers", "numpy")))
    batch = header["batches"][0]
    timed = f"medians of {header['rounds']} rounds, batch {batch}" if header["rounds"] else "not measured"
    lines = [
        f"# {', '.join(stages)}: methods side by side",
        "",
        f"Made by `{header['command']}`.",
        "",
        f"* **Model**: {host.name}, fingerprint {host.fingerprint[:12]}. **Inputs**: {asked}.",
        f"* **Machine**: {machine()}, {torch.get_num_threads()} threads; {versions}; seed {header['seed']}.",
        "* **FLOPs**: share of the uncompressed pass up to the answer's first token, signals and choosing included.",
        f"* **Wall**: share of the uncompressed pass next to it up to the first token, choosing included; {timed}.",
        "* **KV**: mean of the cache behind the prompt, and its share of the uncompressed one.",
        "* **Mean**: exact match in percent, every regime alike. **Against random**: points above `random` at the same",
        "  ratio, at the same stage or else outside; 95 % intervals, paired bootstrap by scene family.",
    ]
    if header.get("nearest"):
        lines += ["* **Ratios**: a method that cannot give one stands at the nearest that it can, and `random` too."]
    if set(stages) & set(DECODED):
        lines += [
            f"* **First, token** (b: rows of a batch): time to the first token and for each of {TOKENS} behind it, as",
            "  shares of the uncompressed ones next to them, medians. **KV**: KiB a row, measured as memory: of caches",
            "  behind the prompt before any choosing in them, and at the end with the answer's tokens.",
        ]
    for stage in stages:
        some = [row for row in rows if _belongs(row.plan, stage)]
        lines += ["", f"## {stage}", "", markdown(some).rstrip("\n")]
        if stage in DECODED and (more := times(some)):
            lines += ["", more.rstrip("\n")]
    if refused:
        lines += ["", "## Not run", "", *not_run(refused)]
    return "\n".join(lines) + "\n"


def not_run(refused: Mapping[str, str]) -> list[str]:
    """A line for each method with the ratios that it was not run at, if not at none, and why at the first of them."""
    ratios: dict[str, list[str]] = {}
    for label in refused:
        method, _, ratio = label.partition("@")
        ratios.setdefault(method, []).extend([ratio] if ratio else [])
    lines = []
    for method, some in ratios.items():
        reason = refused[f"{method}@{some[0]}" if some else method]
        lines.append(f"* `{method}`{' at ' + ', '.join(some) if some else ''}: {reason}")
    return lines


def _belongs(plan: Plan, stage: str) -> bool:
    """Whether a plan stands in a stage's section: its own, and all controls."""
    return all(at == stage or choice.method == "blind" or (at, choice.method) in CONTROLS for at, choice in plan.active)

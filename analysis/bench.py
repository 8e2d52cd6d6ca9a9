"""Every compressor at every ratio on every regime: accuracy, exact FLOPs, tokens, KV bytes, wall time.

The rows come from a replay table, so a bench, a hull and a policy are measured by one code path. Wall time is a share
of the uncompressed pass, timed in alternation with it in one run (`analysis.walls`); absolute times of a shared machine
would mean nothing.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foveate.analysis.walls import Wall
from foveate.compressors.registry import COMPRESSORS
from foveate.models.host import Host
from foveate.models.inputs import PromptShape
from foveate.plans.plan import BLIND, STAGES, UNCOMPRESSED, Plan
from foveate.rollouts.replay import with_usual
from foveate.rollouts.table import Table

RATIOS = (0.75, 0.5, 0.25, 0.11, 0.06)


@dataclass(frozen=True)
class Row:
    """One plan on one table.

    Attributes:
        plan: which.
        accuracy: mean over regimes (each regime counts the same), greedy exact match.
        low, high: 95 % interval of `accuracy`, bootstrap over scene families inside each regime.
        regimes: regime -> (accuracy, low, high).
        cost: mean share of the uncompressed FLOPs. tokens: visual tokens, mean over decoder layers. kv: share of KV
        bytes.
        kv_bytes: their mean.
        gain: accuracy above `random` at the same ratio, low and high end of its 95 % interval, paired; None = there is
            nothing to compare with.
        walls: batch -> what the plan takes; the first batch is that of every plan. Empty = not timed.
    """

    plan: Plan
    accuracy: float
    low: float
    high: float
    regimes: dict[str, tuple[float, float, float]]
    cost: float
    tokens: float
    kv: float
    kv_bytes: float = 0.0
    gain: tuple[float, float, float] | None = None
    walls: Mapping[int, Wall] = field(default_factory=dict)

    @property
    def wall(self) -> float | None:
        """Share of the uncompressed time to the first token, at the first batch; None = not timed."""
        return next((wall.first for wall in self.walls.values()), None)

    @property
    def decoded(self) -> bool:
        """Whether tokens behind the first were timed."""
        return any(wall.token is not None for wall in self.walls.values())


def bench_plans(
    host: Host,
    stages: Sequence[str] = STAGES,
    ratios: Sequence[float] = RATIOS,
    methods: Sequence[str] | None = None,
    shapes: Sequence[PromptShape] = (),
    nearest: bool = False,
) -> tuple[list[Plan], dict[str, str]]:
    """All one-stage plans that the host can run on a usual row and on rows of these shapes, and label -> reason for the
    rest; the uncompressed plan first, the blind one last. Where all of these are videos, the usual row is left out.
    `nearest`: a method that cannot give a ratio stands at the nearest one that it can."""
    plans, refused, tried = [UNCOMPRESSED], {}, with_usual(host, shapes)
    frames = min(shape.frames for shape in tried)
    for stage, name in sorted(COMPRESSORS, key=lambda key: (STAGES.index(key[0]), key[1])):
        if stage not in stages or (methods is not None and name not in methods):
            continue
        reason = host.supports(stage, name, frames)
        for ratio in ratios if reason is None else ():
            plan = Plan.of(**{stage: (name, ratio)})
            error = refusal(host, plan, tried)
            other = nearest_plan(host, stage, name, ratio, tried) if nearest and error is not None else None
            if error is not None and other is None:
                refused[plan.label()] = error
            elif (found := other or plan) not in plans:
                plans.append(found)
        if reason is not None:
            refused[f"{stage}:{name}"] = reason
    return [*plans, BLIND], refused


def refusal(host: Host, plan: Plan, shapes: Sequence[PromptShape]) -> str | None:
    """Why the host cannot run a plan on rows of these shapes; None = it can."""
    try:
        for shape in shapes:
            host.forecast(plan, shape)
    except ValueError as error:
        return str(error)
    return None


def nearest_plan(host: Host, stage: str, name: str, ratio: float, shapes: Sequence[PromptShape]) -> Plan | None:
    """The plan of one method whose ratio is the fewest times larger or smaller than this one, of those that the host
    can run on rows of all these shapes; of two the smaller. None = there is none."""
    n = max(max(host.forecast(UNCOMPRESSED, shape).tokens.values()) for shape in shapes)
    keeps = {round(count / n, 4) for count in range(1, n)} - {0.0}
    for keep in sorted(keeps, key=lambda keep: (abs(math.log(keep / ratio)), keep)):
        plan = Plan.of(**{stage: (name, keep)})
        if refusal(host, plan, shapes) is None:
            return plan
    return None


def rows_of(
    table: Table, walls: Mapping[Plan, Mapping[int, Wall]] | None = None, resamples: int = 1000, seed: int = 0
) -> list[Row]:
    """One row per plan of a table."""
    columns = table.column
    draws = {regime: _draws(table, regime, resamples, seed) for regime in sorted(set(table.regimes.tolist()))}
    means = np.mean(list(draws.values()), axis=0)  # (1 + resamples, P), first row: the table as it is
    made = []
    for column, plan in enumerate(table.plans):
        values, mean = {regime: drawn[:, column] for regime, drawn in draws.items()}, means[:, column]
        rival = random_rival(plan, columns)
        gain = None if rival is None else mean - means[:, columns[rival]]
        made.append(
            Row(
                plan=plan,
                accuracy=float(mean[0]),
                low=_interval(mean)[1],
                high=_interval(mean)[2],
                regimes={regime: _interval(drawn) for regime, drawn in values.items()},
                cost=float(table.share[:, column].mean()),
                tokens=float(table.tokens[:, column].mean()),
                kv=float((table.kv[:, column] / table.kv[:, 0]).mean()),
                kv_bytes=float(table.kv[:, column].mean()),
                gain=None if gain is None else _interval(gain),
                walls=(walls or {}).get(plan, {}),
            )
        )
    return made


def random_rival(plan: Plan, known: Container[Plan]) -> Plan | None:
    """`random` at the ratio of a plan with one decision: at its stage, else outside; None where it is not known."""
    if len(plan.active) != 1 or plan.is_blind:
        return None
    ((stage, choice),) = plan.active
    rivals = [Plan.of(**{at: ("random", choice.keep)}) for at in (stage, "outside")]
    found = next((rival for rival in rivals if rival in known), None)
    return None if found == plan else found


def _interval(drawn: np.ndarray) -> tuple[float, float, float]:
    """The value, and the ends of its 95 % interval, of (1 + resamples,) draws."""
    return float(drawn[0]), *map(float, np.quantile(drawn[1:], [0.025, 0.975]))


def _draws(table: Table, regime: str, resamples: int, seed: int) -> np.ndarray:
    """(1 + resamples, P) accuracies of one regime: as it is, then over resampled scene families."""
    part = table.subset(table.regimes == regime)
    index = part.family_index()
    families = int(index.max()) + 1
    right, size = np.zeros((families, part.p)), np.bincount(index, minlength=families).astype(float)
    np.add.at(right, index, part.correct.astype(float))
    counts = np.random.default_rng(seed).multinomial(families, np.full(families, 1 / families), size=resamples)
    counts = np.concatenate([np.ones((1, families)), counts])
    return counts @ right / (counts @ size)[:, None]


def keep_at_loss(rows: Sequence[Row], regime: str, stage: str, method: str, points: float = 0.05) -> float:
    """The keep ratio at which a method costs `points` of a regime's accuracy, linear between the ratios measured.

    The smallest measured ratio where even that costs less.
    """
    curve = [(1.0, next(row.regimes[regime][0] for row in rows if row.plan == UNCOMPRESSED))]
    curve += [(r.plan[stage].keep, r.regimes[regime][0]) for r in rows if r.plan[stage].method == method]
    curve.sort(reverse=True)
    target = curve[0][1] - points
    for (k1, a1), (k0, a0) in zip(curve, curve[1:], strict=False):
        if a0 < target:
            return k0 + (k1 - k0) * (target - a0) / (a1 - a0) if a1 > a0 else k1
    return curve[-1][0]


def best_methods(rows: Sequence[Row], stage: str, keep: float) -> dict[str, tuple[str, str, bool]]:
    """Regime -> best method of a stage at a ratio, runner-up, and whether their intervals are apart."""
    at = [row for row in rows if row.plan[stage].keep == keep and not row.plan[stage].is_none]
    best = {}
    for regime in at[0].regimes if at else ():
        first, second = sorted(at, key=lambda row: -row.regimes[regime][0])[:2]
        apart = first.regimes[regime][1] > second.regimes[regime][2]
        best[regime] = (first.plan[stage].method, second.plan[stage].method, apart)
    return best


def markdown(rows: Sequence[Row]) -> str:
    """The table for people: a line per plan, accuracy in percent, costs as shares of uncompressed."""
    regimes = list(rows[0].regimes)
    head = ["plan", "tokens", "FLOPs", "KV, KiB (share)", "wall", "mean", "against random", *regimes]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        wall = "not measured" if row.wall is None else f"{row.wall:.2f}"
        gain = "-" if row.gain is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * part for part in row.gain))
        cells = [row.plan.label(), f"{row.tokens:.1f}", f"{row.cost:.3f}", f"{row.kv_bytes / 1024:.1f} ({row.kv:.2f})"]
        cells += [wall, f"{100 * row.accuracy:.1f}", gain, *(f"{100 * row.regimes[r][0]:.0f}" for r in regimes)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def times(rows: Sequence[Row]) -> str:
    """The second table: what an answer takes behind its first token, and its caches; "" where nothing was decoded."""
    some = [row for row in rows if row.decoded]
    if not some:
        return ""
    batches = list(some[0].walls)
    head = ["plan", *(f"{what}, b {b}" for b in batches for what in ("first", "token", "KV prefill", "KV end"))]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in some:
        cells = [row.plan.label()]
        for wall in row.walls.values():
            cells += [f"{wall.first:.2f}", f"{wall.token:.2f}", f"{wall.kv_prefill / 1024:.1f}"]
            cells.append(f"{wall.kv_end / 1024:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The same with intervals, one line per plan; what decoding takes where it was timed."""
    regimes, batches = list(rows[0].regimes), next((list(row.walls) for row in rows if row.decoded), [])
    head = ["plan", "tokens", "flops_share", "kv_share", "wall_share", "accuracy", "low", "high", "kv_bytes"]
    head += ["gain", "gain_low", "gain_high"]
    head += [f"{r}{part}" for r in regimes for part in ("", "_low", "_high")]
    parts = {"first": "first_share", "token": "token_share", "kv_prefill": "kv_prefill_bytes", "kv_end": "kv_end_bytes"}
    head += [f"{said}_b{batch}" for batch in batches for said in parts.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            values = [row.tokens, row.cost, row.kv, row.wall, row.accuracy, row.low, row.high, row.kv_bytes]
            values += row.gain or (None, None, None)
            values += [value for r in regimes for value in row.regimes[r]]
            values += [getattr(row.walls[b], part) if row.decoded else None for b in batches for part in parts]
            writer.writerow([row.plan.label(), *("" if v is None else f"{v:.5g}" for v in values)])

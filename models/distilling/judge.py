"""How good a learned compressor is: held-out answers behind it and behind plain means of as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from foveate.compressors.base import STAGES, Compressor
from foveate.compressors.learned import TRAINING_RATIOS
from foveate.models.distilling.lessons import Lesson
from foveate.models.distilling.losses import answer_losses
from foveate.models.distilling.pairs import Batch, Shape, logits, nearest
from foveate.models.host import Host
from foveate.plans.plan import keep_count

POOL, POOLS = "projector", ("average_pool", "tubelets")
"""Stage and names of the poolings; means of the second reach over time too, of videos alone."""


@dataclass(frozen=True)
class Figure:
    """One keep ratio; all numbers are means over positions of held-out answers.

    Attributes:
        keep: ratio, mean over rows.
        count: tokens of a row behind the method, mean over rows; of a method between decoder layers, over layers too.
        kl, agreement: divergence from the uncompressed host in nats, and share of equal arg-maxima, of the method.
        pool_kl, pool_agreement: of pooling to as many tokens, or the number next to it that pooling can give.
        rows: inputs judged.
        pool: which pooling.
    """

    keep: float
    count: float
    kl: float
    agreement: float
    pool_kl: float
    pool_agreement: float
    rows: int
    pool: str = POOLS[0]

    @property
    def better(self) -> bool:
        """Whether the method is nearer to the uncompressed host than pooling and agrees at least as often."""
        return self.kl < self.pool_kl and self.agreement >= self.pool_agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
def judge(
    host: Host,
    stage: str,
    method: Compressor,
    lessons: Sequence[Lesson],
    batch: int,
    ratios: Sequence[float] = TRAINING_RATIOS,
) -> list[Figure]:
    """A figure for each ratio near which method and pooling can give equal counts; one that is met twice is judged
    once. Of two poolings that is taken whose counts are nearer.

    Args:
        host: the teacher.
        stage: where the method acts.
        method: with its network.
        lessons: not trained on.
        batch: rows at a time.
        ratios: wanted keep ratios.
    """
    sums: dict[float, list[float]] = {}
    rivals: dict[float, Compressor] = {}
    for start in range(0, len(lessons), batch):
        each = Batch(host, min(stage, POOL, key=STAGES.index), lessons[start : start + batch])
        answers = each.answers()
        behind = [
            [(s.n, s.grid) for s in each.teacher.of_row("outside", row) if s.n] for row in range(len(each.lessons))
        ]
        both = list(zip(each.shapes, behind, strict=True))
        frames = min(grid[0] for shapes in behind for _, grid in shapes)
        pools = [host.make(POOL, name) for name in POOLS if host.supports(POOL, name, frames) is None]
        tried = [_nearest(method, [rivals[ratio]] if ratio in rivals else pools, both, ratio) for ratio in ratios]
        met = [keeps for _, keeps in tried]
        for ratio, (pool, keeps) in zip(ratios, tried, strict=True):
            rivals.setdefault(ratio, pool)
            rows = [row for row, keep in enumerate(keeps) if keep < 1]
            if not rows or met.index(keeps) != ratios.index(ratio):
                continue
            length, theirs = answers.length[rows], logits(each.teacher, answers, rows)
            places = float((length + 1).sum())
            found = sums.setdefault(ratio, [0.0] * 8)
            found[0], found[1] = found[0] + len(rows), found[1] + places
            counts: Sequence[float] = []
            for at, (where, one) in enumerate(((stage, method), (POOL, pool))):
                alike = _alike(one, each, counts, keeps) if at and stage == "prefill" else keeps
                p = each.student(where, one, alike)
                kl, same = answer_losses(logits(p, answers, rows), theirs, length)
                found[2 + 2 * at] += places * float(kl)
                found[3 + 2 * at] += places * float(same)
                if not at:
                    counts = [fmean(p.counts["layers"][row]) for row in range(len(keeps))]
                    counts = counts if stage == "prefill" else p.counts[stage]
                    found[6] += sum(keeps[row] for row in rows)
                    found[7] += sum(counts[row] for row in rows)
    return [_figure(*found, pool=rivals[ratio].name) for ratio, found in sorted(sums.items())]


def _nearest(
    method: Compressor, pools: Sequence[Compressor], both: Sequence[tuple[list[Shape], list[Shape]]], wanted: float
) -> tuple[Compressor, tuple[float, ...]]:
    """The pooling whose counts are nearest to a ratio, and the keep ratio of each row; of equally near ones the
    first."""
    tried = [(pool, tuple(_common(method, pool, own, pooled, wanted) for own, pooled in both)) for pool in pools]
    return min(tried, key=lambda each: sum(abs(keep - wanted) for keep in each[1]))


def _common(method: Compressor, pool: Compressor, own: list[Shape], pooled: list[Shape], wanted: float) -> float:
    """The keep ratio nearest to one wanted that both can give, pooling on what reaches the projector; 1 = none."""
    keep = nearest([method, pool], own, wanted)
    suits = all(keep_count(n, keep) in pool.reachable(grid) for n, grid in pooled)
    return keep if suits else 1.0


def _alike(pool: Compressor, batch: Batch, counts: Sequence[float], keeps: Sequence[float]) -> list[float]:
    """The ratio for each row at which a layer gets from pooling what it gets from a method in the mean over layers."""
    full = [sum(n for n, _ in shapes) for shapes in batch.shapes]
    each = zip(batch.shapes, counts, full, keeps, strict=True)
    return [nearest([pool], shapes, count / n) if keep < 1 else 1.0 for shapes, count, n, keep in each]


def _figure(
    rows: float,
    places: float,
    kl: float,
    same: float,
    pool_kl: float,
    pool_same: float,
    keep: float,
    count: float,
    pool: str,
) -> Figure:
    """From sums to means."""
    means = (kl / places, same / places, pool_kl / places, pool_same / places)
    return Figure(keep / rows, count / rows, *means, rows=int(rows), pool=pool)

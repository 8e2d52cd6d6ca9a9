"""How much compression each regime of videos bears, and whether those in which little moves bear more.

For every method and regime of some benches, the largest cut that costs at most a given part of the uncompressed
accuracy: 1 over the smallest keep ratio measured at which no more is lost. Beside it stands how much moves in the
regime's videos: the share of patches that differ from the frame before by more than noise does.

    for inputs in video idle16 idle32 idle64; do
        foveate bench --model reference-video --tasks $inputs --stage projector --methods dtd,evs,vidcom2,dycoke \\
            --ratios 0.75,0.5,0.35,0.25,0.18,0.14,0.1,0.07,0.05,0.035,0.025,0.018 \\
            --n 48 --rounds 0 --out runs/bearing/$inputs
    done
    python -m foveate.analysis.bearing --out docs/bench/bearing.md \\
        --bench runs/bearing/video,runs/bearing/idle16,runs/bearing/idle32,runs/bearing/idle64

Each length stands in a bench of its own, since a bench leaves out a ratio that one of its inputs cannot have, and
methods that keep the first frame whole cannot go below it.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.analysis.bench import Row, rows_of
from foveate.analysis.machine import in_words
from foveate.controller.motion import patches
from foveate.plans.plan import UNCOMPRESSED
from foveate.rollouts.table import Table
from foveate.tasks.registry import regime_sample

NOISE = 0.05
"""Mean absolute step of a patch, of 1, up to which it counts as standing still."""

STILL, FAST = 0.04, 0.10
"""Regimes in which at most this share of the patches moves, and at least this one."""

LONG = ("idle64", "idle32", "idle16")
STANDING = (*LONG, "idle", "mover")
TURNING = ("slides", "panning")
"""Regimes by what they are: long videos with one short event; before a static camera one short event or one mover; the
whole picture changes."""

WHEN = ("first_frame", "last_frame", "part_of", "part_recoloured", "shape_in_frame")
"""Templates of questions that name a frame or a part of the video, or are answered with one."""


def moving(regime: str, split: str, n: int) -> float:
    """Share of the patches of 8 x 8 px that differ from the frame before, over the first n videos of a regime."""
    shares = []
    for index in range(n):
        clip = regime_sample(regime, split, index).clip
        if clip is None:
            raise ValueError(f"{regime}: shows no videos")
        step = np.abs(np.diff(clip.frames.astype(np.float32) / 255, axis=0)).mean(-1)
        shares.append((patches(step) > NOISE).mean())
    return float(np.mean(shares))


@dataclass(frozen=True)
class Borne:
    """What a regime bears of a method.

    Attributes:
        factor: how many times fewer tokens cost at most so much of its accuracy; 1 = none do.
        even: whether every gentler cut that was measured costs no more either.
    """

    factor: float
    even: bool

    @classmethod
    def of(cls, cuts: Mapping[float, bool]) -> Borne:
        """From the cuts that were measured, as factors, and whether each costs no more than it may."""
        factor = max((cut for cut, held in cuts.items() if held), default=1.0)
        return cls(factor, all(held for cut, held in cuts.items() if cut < factor))

    def __str__(self) -> str:
        return f"{self.factor:.1f}{'' if self.even else '*'}"


def factors(rows: Sequence[Row], points: float) -> dict[tuple[str, str], dict[str, Borne]]:
    """(stage, method) -> regime -> how much it bears where `points` of its accuracy may be lost."""
    whole = next(row.regimes for row in rows if row.plan == UNCOMPRESSED)
    cuts: dict[tuple[str, str], dict[str, dict[float, bool]]] = {}
    for row in rows:
        for stage, choice in row.plan.active if not row.plan.is_blind else ():
            measured = cuts.setdefault((stage, choice.method), {regime: {} for regime in whole})
            for regime, (accuracy, *_) in row.regimes.items():
                measured[regime][1 / choice.keep] = accuracy >= whole[regime][0] - points - 1e-9
    return {key: {regime: Borne.of(measured) for regime, measured in regimes.items()} for key, regimes in cuts.items()}


def mean(values: Sequence[float]) -> float:
    """Geometric; not a number where there are none."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def cell(value: float) -> str:
    """A number of the table; "-" where it is none."""
    return "-" if math.isnan(value) else f"{value:.1f}"


@dataclass(frozen=True)
class Section:
    """What some kind of question gave.

    Attributes:
        title: of it.
        whole: regime -> uncompressed accuracy.
        found: see `factors`.
    """

    title: str
    whole: Mapping[str, float]
    found: Mapping[tuple[str, str], Mapping[str, Borne]]

    @classmethod
    def of(cls, title: str, tables: Sequence[Sequence[Row]], points: float) -> Section:
        """From the rows of each bench; where several have a regime the last one counts."""
        whole: dict[str, float] = {}
        found: dict[tuple[str, str], dict[str, Borne]] = {}
        for rows in tables:
            whole |= {regime: accuracy for regime, (accuracy, *_) in rows[0].regimes.items()}
            for key, each in factors(rows, points).items():
                found[key] = found.get(key, {}) | each
        return cls(title, whole, found)

    def lines(self, moved: Mapping[str, float]) -> list[str]:
        """Heading and table; regimes in the order of `moved`."""
        order = [regime for regime in moved if regime in self.whole]
        groups = (*still_and_fast(moved), STANDING, TURNING, LONG)
        heads = ("still", "fast", "ratio", "standing", "turning", "ratio", "long", "ratio")
        empty = " |" * (len(heads) + 1)
        out = [
            f"## {self.title}",
            "",
            "| method | " + " | ".join((*order, *heads)) + " |",
            "|" + " --- |" * (len(order) + len(heads) + 1),
            "| moves, % | " + " | ".join(f"{100 * moved[regime]:.1f}" for regime in order) + empty,
            "| right, % | " + " | ".join(f"{100 * self.whole[regime]:.0f}" for regime in order) + empty,
        ]
        for (stage, method), each in sorted(self.found.items()):
            still, fast, standing, turning, long = (
                mean([each[regime].factor for regime in some if regime in each]) for some in groups
            )
            means = (still, fast, still / fast, standing, turning, standing / turning, long, long / turning)
            cells = (*(str(each.get(regime, "-")) for regime in order), *map(cell, means))
            out.append(f"| {stage}:{method} | " + " | ".join(cells) + " |")
        return out


def still_and_fast(moved: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """The regimes in which next to nothing moves, and those in which much does."""
    return [r for r, share in moved.items() if share <= STILL], [r for r, share in moved.items() if share >= FAST]


def page(sections: Sequence[Section], moved: Mapping[str, float], points: float, asked: str, command: str) -> str:
    """The Markdown page.

    Args:
        sections: in order.
        moved: regime -> see `moving`.
        points: see `factors`.
        asked: the inputs, in words.
        command: that made it.
    Raises:
        ValueError: no regime stands still, or none is fast.
    """
    moved = dict(sorted(moved.items(), key=lambda item: item[1]))
    still, fast = still_and_fast(moved)
    if not still or not fast:
        raise ValueError(
            f"regimes: {len(still)} in which at most {STILL:.0%} moves, {len(fast)} with {FAST:.0%} or more"
        )
    named = (STANDING, TURNING, LONG)
    standing, turning, long = (", ".join(regime for regime in some if regime in moved) for some in named)
    lines = [
        "# How much compression each regime of videos bears",
        "",
        f"Made by `{command}` from benches as the head of `analysis/bearing.py` has them.",
        "",
        f"* **Inputs**: {asked}.",
        f"* **Moves**: share of the 8 x 8 px patches that differ from the frame before by more than {NOISE} of 1.",
        "  **Right**: accuracy uncompressed.",
        f"* **A factor** of 4: a quarter of the tokens costs at most {100 * points:.0f} points of a regime's accuracy,",
        "  and no smaller share that was measured does. 1: every share measured costs more.",
        "  With a star: some larger share that was measured costs more than that.",
        f"* **Still**: geometric mean over regimes in which at most {STILL:.0%} moves: {', '.join(still)}.",
        f"* **Fast**: over those in which at least {FAST:.0%} does: {', '.join(fast)}. **Ratio**: of the two.",
        f"* **Standing**: over those with a static camera and one short event or one mover: {standing}.",
        f"* **Turning**: over those in which the whole picture changes: {turning}.",
        f"* **Long**: over idle videos of more than eight frames: {long}; their ratio is to the turning ones.",
        "* What keeps the first frame whole bears at most as much as a video has frames: 8 where no number stands.",
    ]
    for section in sections:
        lines += ["", *section.lines(moved)]
    return "\n".join(lines) + "\n"


def sections(tables: Sequence[Table], points: float) -> list[Section]:
    """All questions; those about what is seen; those about when."""
    found = [Section.of("All questions", [rows_of(table) for table in tables], points)]
    for title, asks in (("What is seen", False), ("When it is seen", True)):
        parts = [table.subset(np.isin(table.templates, WHEN) == asks) for table in tables]
        if parts := [part for part in parts if part.n]:
            found.append(Section.of(title, [rows_of(part) for part in parts], points))
    return found


def made_with(table: Table) -> str:
    """Model and libraries that filled a table."""
    return f"{table.meta['host']} (fingerprint {table.meta['fingerprint'][:12]}; {in_words(table.meta['versions'])})"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m foveate.analysis.bearing", description=__doc__.split("\n")[0])
    parser.add_argument("--bench", required=True, metavar="A,B", help="folders that `foveate bench` wrote")
    parser.add_argument("--points", type=float, default=0.05, help="accuracy that may be lost (default: 0.05)")
    parser.add_argument("--split", default="test", help="that the bench asked (default: test)")
    parser.add_argument("--n", type=int, default=24, help="videos of a regime that are looked at (default: 24)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown (default: print)")
    args = parser.parse_args(argv)
    folders = [Path(folder) for folder in args.bench.split(",")]
    for folder in folders:
        if not (folder / "table.parquet").is_file():
            raise SystemExit(f"bearing: no {folder / 'table.parquet'}: run `foveate bench --out {folder}` first")
    tables = [Table.load(folder / "table.parquet") for folder in folders]
    models = {made_with(table): folder for table, folder in zip(tables, folders, strict=True)}
    if len(models) > 1:
        told = "; ".join(f"{folder} is of {model}" for model, folder in models.items())
        raise SystemExit(f"bearing: benches of different models or libraries do not make one page: {told}")
    numbers: dict[str, int] = {}
    for table in tables:
        numbers |= dict(zip(*(part.tolist() for part in np.unique(table.regimes, return_counts=True)), strict=True))
    asked = ", ".join(f"{regime} {number}" for regime, number in sorted(numbers.items()))
    asked = f"{asked}, asked of {made_with(tables[0])}"
    command = shlex.join(["python", "-m", "foveate.analysis.bearing", *argv])
    try:
        moved = {regime: moving(regime, args.split, args.n) for regime in numbers}
        text = page(sections(tables, args.points), moved, args.points, asked, command)
    except ValueError as error:
        raise SystemExit(f"bearing: {error}") from None
    if args.out is None:
        print(text, end="")
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
        print(args.out)


if __name__ == "__main__":
    main()

"""How much compression each regime of videos bears, and that those in which little moves bear more.

For every method and regime of a bench, the factor by which tokens can be cut until a given part of the uncompressed
accuracy is lost: 1 over the keep ratio of `bench.keep_at_loss`, linear between the ratios measured. Beside it stands
how much moves in the regime's videos: the share of patches that differ from the frame before by more than noise does.

    foveate bench --model reference-video --tasks video,long-video --stage outside,projector --methods dtd,evs \\
        --ratios 0.5,0.25,0.14,0.1,0.05 --rounds 0 --out runs/bench_bearing
    python -m foveate.analysis.bearing --bench runs/bench_bearing --out docs/bench/bearing.md
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foveate.analysis.bench import Row, keep_at_loss, rows_of
from foveate.rollouts.table import Table
from foveate.tasks.registry import regime_sample

PATCH = 8  # pixels
NOISE = 0.05
"""Mean absolute step of a patch, of 1, up to which it counts as standing still."""

STILL, FAST = 0.04, 0.10
"""Regimes in which at most this share of the patches moves, and at least this one."""


def moving(regime: str, split: str, n: int) -> float:
    """Share of the patches of 8 x 8 px that differ from the frame before, over the first n videos of a regime."""
    shares = []
    for index in range(n):
        clip = regime_sample(regime, split, index).clip
        if clip is None:
            raise ValueError(f"{regime}: shows no videos")
        step = np.abs(np.diff(clip.frames.astype(np.float32) / 255, axis=0)).mean(-1)
        t, height, width = step.shape
        cut = step[:, : height // PATCH * PATCH, : width // PATCH * PATCH]
        cells = cut.reshape(t, height // PATCH, PATCH, width // PATCH, PATCH).mean(axis=(2, 4))
        shares.append((cells > NOISE).mean())
    return float(np.mean(shares))


def factors(rows: Sequence[Row], points: float) -> dict[tuple[str, str], dict[str, float]]:
    """(stage, method) -> regime -> how many times fewer tokens cost `points` of its accuracy."""
    methods = {
        (stage, choice.method): None for row in rows for stage, choice in row.plan.active if not row.plan.is_blind
    }
    return {
        key: {regime: 1 / keep_at_loss(rows, regime, *key, points) for regime in rows[0].regimes} for key in methods
    }


def mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(float(np.mean(np.log(values))))


def page(rows: Sequence[Row], moved: Mapping[str, float], points: float, asked: str, commands: Sequence[str]) -> str:
    """The Markdown page.

    Args:
        rows: of a bench, the uncompressed plan first.
        moved: regime -> see `moving`.
        points: see `factors`.
        asked: the inputs, in words.
        commands: that made it, in order.
    Raises:
        ValueError: no regime stands still, or none is fast.
    """
    order = sorted(moved, key=lambda regime: moved[regime])
    still = [regime for regime in order if moved[regime] <= STILL]
    fast = [regime for regime in order if moved[regime] >= FAST]
    if not still or not fast:
        raise ValueError(
            f"regimes: {len(still)} in which at most {STILL:.0%} moves, {len(fast)} with {FAST:.0%} or more"
        )
    lines = [
        "# How much compression each regime of videos bears",
        "",
        f"Made by {' and '.join(f'`{command}`' for command in commands)}.",
        "",
        f"* **Inputs**: {asked}.",
        f"* **Moves**: share of the 8 x 8 px patches that differ from the frame before by more than {NOISE} of 1.",
        f"* **A factor** of 4: with a quarter of the tokens {100 * points:.0f} points of a regime's accuracy are lost;",
        "  linear between the ratios measured, and the largest one measured where even that costs less.",
        f"* **Still**: geometric mean over regimes in which at most {STILL:.0%} moves: {', '.join(still)}.",
        f"* **Fast**: over those in which at least {FAST:.0%} does: {', '.join(fast)}. **Ratio**: of the two.",
        "",
        "| method | " + " | ".join(order) + " | still | fast | ratio |",
        "|" + " --- |" * (len(order) + 4),
        "| moves, % | " + " | ".join(f"{100 * moved[regime]:.1f}" for regime in order) + " | | | |",
        "| uncompressed, % | " + " | ".join(f"{100 * rows[0].regimes[regime][0]:.0f}" for regime in order) + " | | | |",
    ]
    for (stage, method), each in sorted(factors(rows, points).items()):
        a, b = (mean([each[regime] for regime in some]) for some in (still, fast))
        cells = [f"{value:.1f}" for value in (*(each[regime] for regime in order), a, b, a / b)]
        lines.append(f"| {stage}:{method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m foveate.analysis.bearing", description=__doc__.split("\n")[0])
    parser.add_argument("--bench", type=Path, required=True, metavar="FOLDER", help="that `foveate bench` wrote")
    parser.add_argument("--points", type=float, default=0.05, help="accuracy that may be lost (default: 0.05)")
    parser.add_argument("--split", default="test", help="that the bench asked (default: test)")
    parser.add_argument("--n", type=int, default=24, help="videos of a regime that are looked at (default: 24)")
    parser.add_argument("--made-by", metavar="COMMAND", help="that made the bench, for the page")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown (default: print)")
    args = parser.parse_args(argv)
    path = args.bench / "table.parquet"
    if not path.is_file():
        raise SystemExit(f"bearing: no {path}: run `foveate bench --out {args.bench}` first")
    table = Table.load(path)
    regimes, numbers = np.unique(table.regimes, return_counts=True)
    asked = ", ".join(f"{regime} {number}" for regime, number in zip(regimes, numbers, strict=True))
    commands = [args.made_by or f"foveate bench --out {args.bench}"]
    commands.append(shlex.join(["python", "-m", "foveate.analysis.bearing", *argv]))
    try:
        moved = {regime: moving(regime, args.split, args.n) for regime in regimes.tolist()}
        text = page(rows_of(table), moved, args.points, asked, commands)
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

"""`foveate bench`: every compressor at every ratio on every regime: a table, a CSV file and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.cli import data
from foveate.cli.reading import LEARNED_HELP, listed, open_model, read_ratios
from foveate.plans.plan import STAGES

if TYPE_CHECKING:
    from foveate.analysis.bench import Row
    from foveate.models.host import Host
    from foveate.tasks.base import Sample

EXAMPLE = "foveate bench --tasks scenes,reading --n 48 --stages outside,prefill --ratios 0.5,0.25 --out runs/bench"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--model", default="reference", help="reference, a folder, or a hub id (default: reference)")
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument(
        "--device",
        default="cpu",
        help="where the model runs: cpu, cuda:1, ..., or auto: spread over what is there (default: cpu)",
    )
    parser.add_argument("--learned", metavar="FOLDER", help=LEARNED_HELP)
    parser.add_argument("--stages", default=",".join(STAGES), metavar="A,B", help="stages (default: all)")
    parser.add_argument("--methods", metavar="A,B", help="methods (default: all)")
    parser.add_argument("--ratios", default="0.75,0.5,0.25,0.11,0.06", metavar="A,B", help="keep ratios")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="Ray actors; 0 = in this process (default)")
    parser.add_argument(
        "--rounds", type=int, default=0, metavar="N", help="times each plan is timed; 0 = not (default)"
    )
    parser.add_argument("--out", default="runs/bench", metavar="FOLDER", help="table.parquet, bench.csv, bench.png")
    data.arguments(parser, "test", 240)


def main(args: argparse.Namespace) -> int:
    """Prints the table."""
    from foveate.analysis.bench import markdown

    stages, methods, ratios = chosen(args.stages, args.methods, args.ratios)
    if args.rounds < 0:
        raise ValueError(f"--rounds: {args.rounds} is below 0")
    samples = data.samples_of(args)
    host = open_model(args.model, args.dtype, args.device, args.learned)
    rows, refused = run(host, samples, args.out, stages, ratios, methods, args.rounds, args.workers)
    print(markdown(rows))
    for label, reason in refused.items():
        print(f"not run: {label}: {reason}")
    print(f"{args.out}/bench.csv, {args.out}/bench.png, {args.out}/table.parquet")
    return 0


def chosen(
    stages: str, methods: str | None, ratios: str
) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[float, ...]]:
    """Stages, methods (None = all) and ratios from comma-separated texts. Raises: ValueError naming what is wrong."""
    from foveate.compressors.registry import COMPRESSORS

    some_stages = listed("--stages", stages, STAGES)
    names = sorted({name for _, name in COMPRESSORS})
    some_methods = None if methods is None else listed("--methods", methods, names)
    return some_stages, some_methods, read_ratios("--ratios", ratios)


def run(
    host: Host,
    samples: Sequence[Sample],
    out: str | Path,
    stages: Sequence[str] = STAGES,
    ratios: Sequence[float] = (0.5, 0.25),
    methods: Sequence[str] | None = None,
    rounds: int = 0,
    workers: int = 0,
) -> tuple[list[Row], dict[str, str]]:
    """Runs the bench and writes its files into `out`.

    Returns:
        A row for each plan, and label -> reason of those that the model cannot run.
    Raises:
        ValueError: `out` holds a table of something else; it is left as it is.
    """
    from foveate.analysis import bench
    from foveate.envs.inputs import inputs_of
    from foveate.rollouts.replay import fill, layouts

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shapes = layouts(host, inputs_of(samples))
    plans, refused = bench.bench_plans(host, stages, ratios, methods, shapes)
    table = fill(host, samples, plans, out / "table.parquet", workers=workers)
    walls = bench.wall_shares(host, samples, plans, rounds) if rounds else None
    rows = bench.rows_of(table, walls)
    bench.write_csv(rows, out / "bench.csv")
    bench.picture(rows, out / "bench.png", f"{host.name}, {table.n} inputs")
    return rows, refused

"""`foveate bench`: every compressor at every ratio on every regime: a table, a CSV file and a picture."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli import data
from foveate.cli.reading import listed, model_arguments, open_model, read_counts, read_ratios
from foveate.plans.plan import STAGES

if TYPE_CHECKING:
    from foveate.analysis.bench import Row
    from foveate.envs.inputs import Input
    from foveate.models.host import Host
    from foveate.rollouts.table import Table

EXAMPLE = "foveate bench --stage outside,prefill --tasks scenes,reading --n 12 --ratios 0.5,0.25 --out runs/bench"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    model_arguments(parser)
    stages = {"default": ",".join(STAGES), "metavar": "A,B", "help": "stages (default: all)"}
    parser.add_argument("--stage", "--stages", dest="stages", **stages)
    parser.add_argument("--methods", metavar="A,B", help="methods (default: all), beside the controls")
    parser.add_argument("--ratios", default="0.75,0.5,0.25,0.11,0.06", metavar="A,B", help="keep ratios")
    parser.add_argument(
        "--nearest", action="store_true", help="a method that cannot give a ratio stands at the nearest that it can"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="Ray actors; 0 = in this process (default)")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="times each plan is timed; 0 = not (default: 5)"
    )
    parser.add_argument(
        "--batches", default="1,16", metavar="A,B", help="rows that run together, for times (default: 1,16)"
    )
    parser.add_argument("--markdown", metavar="FILE", help="also a page with a table for each stage")
    parser.add_argument(
        "--out",
        default="runs/bench",
        metavar="FOLDER",
        help="table.parquet, bench.csv, bench.png, walls.json; what is there already is not run again",
    )
    data.arguments(parser, "test", 24, "inputs of each regime")


def main(args: argparse.Namespace) -> int:
    """Prints the table."""
    from foveate.analysis.bench import markdown, times

    stages, methods, ratios = chosen(args.stages, args.methods, args.ratios)
    if args.rounds < 0:
        raise ValueError(f"--rounds: {args.rounds} is below 0")
    batches = read_counts("--batches", args.batches)
    inputs = data.inputs_of(args)
    host = open_model(args.model, args.dtype, args.device, args.learned)
    found = run(
        host, inputs, args.out, stages, ratios, methods, args.rounds, args.workers, args.seed, batches, args.nearest
    )
    print(markdown(found.rows))
    if more := times(found.rows):
        print(more)
    for label, reason in found.refused.items():
        print(f"not run: {label}: {reason}")
    files = [f"{args.out}/{name}" for name in ("bench.csv", "bench.png", "table.parquet")]
    if args.markdown is not None:
        header = {"command": command(args), "batches": batches}
        header |= {name: getattr(args, name) for name in ("rounds", "seed", "nearest")}
        write_page(Path(args.markdown), found, stages, host, header)
        files.append(args.markdown)
    print(", ".join(files))
    return 0


def command(args: argparse.Namespace) -> str:
    """The line that makes a bench again, without what names files."""
    said = ["foveate", "bench"]
    for name in ("model", "learned", "stages", "methods", "ratios", "rounds", "batches", "split", "n", "seed"):
        value = getattr(args, name)
        said += [] if value is None else [f"--{'stage' if name == 'stages' else name}", str(value)]
    said += ["--nearest"] if args.nearest else []
    return shlex.join([*said, *(("--tasks", args.tasks) if args.jsonl is None else ("--jsonl", args.jsonl))])


def write_page(path: Path, found: Found, stages: Sequence[str], host: Host, header: dict[str, Any]) -> None:
    """The page of a bench."""
    from foveate.analysis.stages import page

    path.parent.mkdir(parents=True, exist_ok=True)
    text = page(found.rows, stages, host, found.table, header, found.refused)
    path.write_text(text, encoding="utf-8")


def chosen(
    stages: str, methods: str | None, ratios: str
) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[float, ...]]:
    """Stages, methods (None = all) and ratios from comma-separated texts. Raises: ValueError naming what is wrong."""
    from foveate.compressors.registry import COMPRESSORS

    some_stages = listed("--stages", stages, STAGES)
    names = sorted({name for _, name in COMPRESSORS})
    some_methods = None if methods is None else listed("--methods", methods, names)
    return some_stages, some_methods, read_ratios("--ratios", ratios)


@dataclass(frozen=True)
class Found:
    """What a bench gave.

    Attributes:
        rows: one for each plan.
        refused: label -> reason of those that the model cannot run.
        table: what the rows were made from.
    """

    rows: list[Row]
    refused: dict[str, str]
    table: Table


def run(
    host: Host,
    inputs: Sequence[Input],
    out: str | Path,
    stages: Sequence[str] = STAGES,
    ratios: Sequence[float] = (0.5, 0.25),
    methods: Sequence[str] | None = None,
    rounds: int = 0,
    workers: int = 0,
    seed: int = 0,
    batches: Sequence[int] = (1,),
    nearest: bool = False,
) -> Found:
    """Runs the bench and writes its files into `out`. What they hold already is not run again.

    Raises:
        ValueError: `out` holds a table of something else; it is left as it is.
    """
    from foveate.analysis import bench
    from foveate.analysis import stages as staged
    from foveate.analysis.figures import save, stage_panels
    from foveate.analysis.walls import wall_times
    from foveate.rollouts.replay import layouts

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plans, refused = staged.stage_plans(host, stages, ratios, methods, layouts(host, inputs), nearest)
    table = staged.grown(host, inputs, plans, out / "table.parquet", workers)
    walls = None
    if rounds:
        walls = wall_times(host, inputs, plans, rounds, out / "walls.json", batches, staged.decoded(plans, stages))
    rows = bench.rows_of(table, walls, seed=seed)
    bench.write_csv(rows, out / "bench.csv")
    save(stage_panels(rows, f"{host.name}, {table.n} inputs"), out / "bench.png")
    return Found(rows, refused, table)

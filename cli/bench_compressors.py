"""`foveate bench-compressors`: what every method's choosing costs, as a share of one ViT-L block timed beside it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from foveate.cli.reading import listed, read_ratios
from foveate.cli.text import columns

EXAMPLE = "foveate bench-compressors --stages outside --rounds 15 --out runs/compressors"
TIMED = ("encoder", "outside", "projector", "prefill")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--stages", default=",".join(TIMED), metavar="A,B", help=f"default: {','.join(TIMED)}")
    parser.add_argument("--methods", metavar="A,B", help="methods (default: all)")
    parser.add_argument("--ratios", default="0.5,0.11", metavar="A,B", help="keep ratios (default: 0.5,0.11)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of all methods (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="of tokens and weights (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--out", default="runs/compressors", metavar="FOLDER", help="compressors.csv and compressors.md"
    )


def main(args: argparse.Namespace) -> int:
    """Measures, writes, prints."""
    from foveate.analysis import compressor_times as times
    from foveate.compressors.registry import COMPRESSORS
    from foveate.rollouts.bar import bar

    stages, ratios = listed("--stages", args.stages, TIMED), read_ratios("--ratios", args.ratios)
    known = sorted({name for stage, name in COMPRESSORS if stage in stages})
    methods = None if args.methods is None else listed("--methods", args.methods, known)
    if args.rounds < 1:
        raise ValueError(f"--rounds: {args.rounds} is below 1")
    cases = times.cases(stages, methods, ratios, args.seed)
    with bar("timing", args.rounds + 1, "rounds") as advance:
        timings = times.measure(cases, args.rounds, args.seed, advance)
    header = times.about(args.rounds, args.seed)
    times.write(timings, header, Path(args.out))
    entries = [times.entry(timing) for timing in timings]
    if args.json:
        print(json.dumps(header | {"timings": entries}, indent=1))
        return 0
    print("\n".join(f"{key}: {value}" for key, value in header.items()) + "\n")
    rows = [(*(e[key] for key in HEAD[:-2]), f"{100 * e['share']:.2f}", e["verdict"]) for e in entries]
    print(columns(HEAD, rows, right=(2, 3, 5, 6)))
    print(f"\n{args.out}/compressors.csv, {args.out}/compressors.md")
    return 0


HEAD = ("stage", "method", "keep", "count", "kind", "operations", "share, %", "verdict")

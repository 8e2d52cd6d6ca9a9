"""`foveate replay`: a table of what every plan gives on every input."""

from __future__ import annotations

import argparse

from foveate.cli import data
from foveate.cli.reading import model_arguments, open_model
from foveate.cli.text import columns

EXAMPLE = "foveate replay --tasks scenes,reading --split validation --n 60 --portfolio one_stage --out table.parquet"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    model_arguments(parser)
    parser.add_argument("--portfolio", default="one_stage", help="plans: a name or a YAML file (default: one_stage)")
    parser.add_argument("--label-free", action="store_true", help="judge by the uncompressed model's own answers too")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="Ray actors; 0 = in this process (default)")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="Parquet file; a part that is there is gone on with"
    )
    data.arguments(parser, "policy-train", 240)


def main(args: argparse.Namespace) -> int:
    """Fills the table and prints what is in it."""
    from foveate.compressors.registry import COMPRESSORS
    from foveate.plans.portfolio import Portfolio
    from foveate.rollouts.replay import fill

    portfolio = Portfolio.from_yaml(args.portfolio, COMPRESSORS)
    inputs = data.samples_of(args)
    host = open_model(args.model, args.dtype, args.device, args.learned)
    table = fill(host, inputs, portfolio, args.out, workers=args.workers, label_free=args.label_free)
    rows = [
        (
            plan.label(),
            f"{table.correct[:, i].mean():.3f}",
            f"{table.share[:, i].mean():.3f}",
            f"{table.tokens[:, i].mean():.1f}",
        )
        for i, plan in enumerate(table.plans)
    ]
    print(columns(("plan", "exact match", "FLOPs share", "visual tokens"), rows, right=(1, 2, 3)))
    print(f"\n{table.n} inputs x {table.p} plans: {args.out}")
    return 0

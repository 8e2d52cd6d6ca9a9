"""`foveate train`: from a configuration to a controller: replay tables, then the policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from foveate.cli.text import columns

EXAMPLE = "foveate train train_tiny --out runs/tiny"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped one")
    parser.add_argument("--out", metavar="FOLDER", help="over the file's out")
    parser.add_argument("--seed", type=int, help="over the file's seed")
    parser.add_argument("--model", help="over the file's model.name")
    parser.add_argument("--dtype", help="over the file's model.dtype")
    parser.add_argument("--device", help="over the file's model.device")
    parser.add_argument("--learned", metavar="FOLDER", help="over the file's model.learned")
    parser.add_argument("--jsonl", "--data", metavar="FILE", help="over the file's data.jsonl: your own questions")
    parser.add_argument("--images", metavar="FOLDER", help="over the file's data.images")
    parser.add_argument("--portfolio", help="over the file's portfolio")
    parser.add_argument("--updates", type=int, metavar="N", help="over the file's policy.updates")
    parser.add_argument("--workers", type=int, metavar="N", help="over the file's rollouts.workers")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")


def main(args: argparse.Namespace) -> int:
    """Trains, and prints where the controller is and how it compares."""
    from foveate.cli.config import read_config
    from foveate.cli.training import RunConfig, run
    from foveate.plans.files import find_config

    flags = {"out": args.out, "seed": args.seed, "model.name": args.model, "model.dtype": args.dtype}
    flags |= {"model.device": args.device, "model.learned": args.learned, "portfolio": args.portfolio}
    flags |= {"data.jsonl": args.jsonl, "data.images": args.images}
    flags |= {"policy.updates": args.updates, "rollouts.workers": args.workers}
    config = read_config(RunConfig, find_config(".", args.config), flags)
    trained = run(config, args.resume)
    rows = [(name, f"{value:.4f}") for name, value in sorted(trained.scores.items(), key=lambda pair: -pair[1])]
    print(columns(("on the validation inputs", "mean reward"), rows, right=(1,)))
    path = Path(config.out) / "controller.fov"
    print(f"\n{path}: {trained.winner}, {path.stat().st_size} bytes")
    return 0

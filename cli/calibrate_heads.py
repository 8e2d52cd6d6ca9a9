"""`foveate calibrate-heads`: which heads of a model look at what is read, for the method sparsemm."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.cli.reading import model_arguments, open_model
from foveate.cli.text import columns

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = "foveate calibrate-heads --model reference --pictures 50 --out runs/learned"

SHOWN = 10
"""Heads in the table."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    model_arguments(parser, learned=False)
    parser.add_argument(
        "--pictures", type=int, default=100, metavar="N", help="drawn pictures with text to read (default: 100)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=16, metavar="N", help="most tokens of an answer (default: 16)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="for the scores (default: where the model looks for them)")


def main(args: argparse.Namespace) -> int:
    """Measures, writes the scores, and prints the heads that score most."""
    for name in ("pictures", "new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: needs at least 1")
    from foveate.compressors.decode.sparsemm import HeadScores
    from foveate.models.head_scores import head_scores, written
    from foveate.models.learned import home, save

    host = open_model(args.model, args.dtype, args.device)
    scores, tokens = head_scores(host, islice(written(), args.pictures), args.new_tokens)
    table_of = HeadScores(*scores.shape)
    table_of.load_state_dict({"scores": scores})
    about = {"pictures": args.pictures, "tokens": tokens, "new_tokens": args.new_tokens}
    place = Path(args.out) if args.out else home(host)
    path = save(place, host, "decode", "sparsemm", table_of, about, scores.dtype)
    print(table(scores))
    print(f"\n{tokens} tokens on {args.pictures} pictures. {path}: {path.stat().st_size} bytes.")
    return 0


def table(scores: Tensor) -> str:
    """The heads with the highest scores (L, h), each with its share of all scores."""
    total, heads = float(scores.sum()), scores.shape[1]
    best = scores.flatten().sort(descending=True, stable=True)
    rows = [
        [str(int(at) // heads), str(int(at) % heads), f"{float(value):.4f}", f"{float(value) / max(total, 1e-12):.1%}"]
        for value, at in zip(best.values[:SHOWN], best.indices[:SHOWN], strict=True)
    ]
    return columns(["layer", "head", "score", "share of all"], rows, right=(0, 1, 2, 3))

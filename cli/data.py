"""Inputs that a verb works on: built-in tasks, or the user's own JSONL file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from foveate.tasks.base import SPLITS

if TYPE_CHECKING:
    from foveate.envs.inputs import Input
    from foveate.tasks.base import Sample

TASKS = ("scenes", "reading", "documents", "charts", "digits", "pictures")


def arguments(parser: argparse.ArgumentParser, split: str, n: int, unit: str = "samples") -> None:
    """Declares --tasks, --split, --n, --jsonl, --images and --seed; `unit`: what --n counts."""
    parser.add_argument(
        "--tasks",
        default=",".join(TASKS),
        metavar="A,B",
        help=f"built-in tasks or single regimes of them (default: {','.join(TASKS)})",
    )
    parser.add_argument("--split", default=split, choices=SPLITS, help=f"their split (default: {split})")
    parser.add_argument("--n", type=int, default=n, metavar="N", help=f"{unit} (default: {n})")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the regimes (default: 0)")
    parser.add_argument(
        *("--jsonl", "--data"),
        metavar="FILE",
        help="your own data instead: image (or images, of several; or video), question, answers in every row",
    )
    parser.add_argument("--images", metavar="FOLDER", help="folder that its image paths start from (default: its own)")
    parser.add_argument("--skip-bad", action="store_true", help="report bad rows of --jsonl and go on")


def samples_of(args: argparse.Namespace) -> list[Sample]:
    """The samples that the arguments name. Raises: ValueError; see `samples`."""
    on_error = "skip" if args.skip_bad else "raise"
    return samples(_named(args.tasks), args.split, args.n, args.seed, args.jsonl, args.images, on_error)


def samples(
    tasks: Sequence[str],
    split: str,
    n: int,
    seed: int = 0,
    jsonl: str | None = None,
    images: str | None = None,
    on_error: str = "raise",
) -> list[Sample]:
    """Samples of built-in tasks, or the first `n` of a JSONL file.

    Raises:
        ValueError: an unknown task or split, n below 1, a bad row (with its file and line), or no row at all.
    """
    from foveate.tasks.jsonl import read_jsonl
    from foveate.tasks.registry import iter_samples

    if n < 1:
        raise ValueError(f"n: {n} samples is below 1")
    if jsonl is None:
        return list(iter_samples(tasks, split, n, seed))
    found = list(islice(read_jsonl(jsonl, images, on_error), n))
    if not found:
        raise ValueError(f"{jsonl}: holds no row that can be used")
    return found


def inputs_of(args: argparse.Namespace) -> list[Input]:
    """`args.n` inputs of each regime that the arguments name.

    Built-in tasks: one question of each picture, its first, second, ... in turn, so that all are independent. Your own
    data: the first ones, with all questions of each row.

    Raises:
        ValueError: see `samples`.
    """
    from foveate.envs import inputs
    from foveate.tasks.jsonl import read_jsonl
    from foveate.tasks.registry import iter_samples, regimes

    if args.n < 1:
        raise ValueError(f"n: {args.n} inputs of a regime is below 1")
    if args.jsonl is None:
        tasks = _named(args.tasks)
        number = len(regimes(tasks))
        rows = enumerate(iter_samples(tasks, args.split, args.n * number, args.seed))  # in rounds of all regimes
        return [inputs.input_of(row, i // number % len(row.turns)) for i, row in rows]
    rows = read_jsonl(args.jsonl, args.images, "skip" if args.skip_bad else "raise")
    found = _firsts(inputs.inputs_of(rows), args.n)
    if not found:
        raise ValueError(f"{args.jsonl}: holds no row that can be used")
    return found


def _named(tasks: str) -> list[str]:
    return [name.strip() for name in tasks.split(",") if name.strip()]


def _firsts(found: Iterable[Input], n: int) -> list[Input]:
    """The first n of each regime."""
    number: Counter[str] = Counter()
    kept = []
    for each in found:
        number[each.regime] += 1
        if number[each.regime] <= n:
            kept.append(each)
    return kept


def regime_inputs(names: Sequence[str], split: str, count: int) -> list[Input]:
    """`count` inputs, the regimes in turn: the first question of each one's first pictures."""
    from foveate.envs.inputs import input_of
    from foveate.tasks.registry import regime_sample

    return [input_of(regime_sample(names[i % len(names)], split, i // len(names)), 0) for i in range(count)]

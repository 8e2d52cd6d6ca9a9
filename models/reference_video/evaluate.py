"""Accuracy per regime of the video model: with all frames, and with the middle one alone.

Run it as `python -m foveate.models.reference_video.evaluate --split test --count 200`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerBase as Tokenizer

from foveate.models.reference.evaluate import answered, shares
from foveate.models.reference_video import WEIGHTS
from foveate.models.reference_video.batches import REGIMES, pixels_of
from foveate.tasks.base import Sample
from foveate.tasks.registry import TASKS

VIDEOS = TASKS["video"].regimes
LONG = TASKS["long-video"].regimes
PICTURES = tuple(REGIMES["pictures"])
APART = ("motion", "order", "times")
"""Regimes in which one frame has to tell a quarter of the answers less than all of them."""


def accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: Tokenizer,
    split: str,
    count: int,
    regimes: tuple[str, ...] = VIDEOS,
    one: bool = False,
) -> dict[str, float]:
    """Regime -> share of questions answered exactly, over `count` samples a regime; `one`: shown the middle frame."""

    def judge(samples: list[Sample]) -> list[list[bool]]:
        return answered(model, tokenizer, samples, pixels_of(samples, one))

    return shares(model, judge, regimes, split, count, 16, f"{split}{' one frame' if one else ''}")


def measure(
    model: LlavaForConditionalGeneration, tokenizer: Tokenizer, split: str, count: int, long: int
) -> dict[str, object]:
    """Everything that `main` writes.

    Args:
        model: the model.
        tokenizer: its own.
        split: one of `tasks.base.SPLITS`.
        count: samples a regime.
        long: samples of each regime of long videos.
    """
    found = {"split": split, "count": count, "accuracy": accuracy(model, tokenizer, split, count, (*VIDEOS, *PICTURES))}
    found["one_frame"] = accuracy(model, tokenizer, split, count, VIDEOS, one=True)
    found["long"] = accuracy(model, tokenizer, split, long, LONG) if long else {}
    return found


def main(argv: list[str] | None = None) -> None:
    """Prints the table and, with --out, writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=200, help="samples per regime")
    parser.add_argument("--long", type=int, default=50, help="samples of each regime of long videos")
    parser.add_argument("--out", type=Path, help="file, such as models/reference_video/accuracy.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    if not (args.model / "config.json").is_file():
        raise SystemExit(f"evaluate: no model in {args.model}")
    torch.set_num_threads(args.threads)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    found = measure(model, AutoProcessor.from_pretrained(args.model).tokenizer, args.split, args.count, args.long)
    print(f"{args.split} split, {args.count} samples a regime, {args.long} long ones")
    print(f"{'regime':<12} {'accuracy':>8} {'one frame':>9}")
    for regime, value in {**found["accuracy"], **found["long"]}.items():
        alone = found["one_frame"].get(regime)
        print(f"{regime:<12} {value:>8.3f} {'' if alone is None else f'{alone:>9.3f}'}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy per regime of the reference model, with the picture and without it.

Run it as `python -m foveate.models.reference.evaluate --split test --count 200`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from foveate.models.reference import WEIGHTS
from foveate.models.reference.batches import TEXT, normalised, pack
from foveate.models.reference.objectives import seen, turn_mask
from foveate.models.reference.processor import build_tokenizer
from foveate.tasks.base import Sample
from foveate.tasks.registry import TASKS, regime_sample


def right(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, samples: list[Sample], blind: bool
) -> list[list[bool]]:
    """See `answered`, with the pictures or with grey ones."""
    images = np.stack([np.full_like(s.image, 128) if blind else s.image for s in samples])
    return answered(model, tokenizer, samples, normalised(images))


@torch.no_grad()
def answered(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, samples: list[Sample], pixels: Tensor
) -> list[list[bool]]:
    """For each sample, whether greedy decoding gives each packed turn's answer exactly (arg-max right at every
    position, end included).

    Args:
        model: the model.
        tokenizer: its own.
        samples: with the questions.
        pixels: what is shown: (B, 3, H, W), or (B, T, 3, H, W) for videos.
    """
    packed = torch.from_numpy(np.stack([pack(s, tokenizer) for s in samples])).to(model.device)
    core = model.model
    patches, _ = seen(model, pixels.to(model.device))
    text, turn, place, target = packed.unbind(1)
    prefix, embed = 1 + patches.shape[1], core.language_model.embed_tokens
    start = embed(torch.full_like(text[:, :1], model.config.text_config.bos_token_id))
    embeds = torch.cat([start, core.multi_modal_projector(patches), embed(text)], dim=1)
    places = torch.cat([torch.arange(prefix, device=text.device).expand(len(text), -1), prefix + place], dim=1)
    hidden = core.language_model(
        inputs_embeds=embeds, attention_mask=turn_mask(turn, prefix), position_ids=places, use_cache=False
    ).last_hidden_state[:, prefix:]
    hit = (model.lm_head(hidden).argmax(-1) == target) | (target == -100)
    return [
        [bool(hit[row][turn[row] == t].all()) for t in range(int(turn[row].max()) + 1)] for row in range(len(samples))
    ]


def usable_regimes() -> list[str]:
    """The regimes of pictures and short answers whose task has its data here: what is learned and judged."""
    fitting = [task for task in TASKS.values() if task.shows == "picture" and not task.long_answers]
    return [regime for task in fitting if task.available() is None for regime in task.regimes]


def accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    count: int,
    blind: bool = False,
    size: int = 32,
) -> dict[str, float]:
    """Regime -> share of questions answered exactly, over `count` pictures a regime."""
    label = f"{split}{' blind' if blind else ''}"
    return shares(model, lambda s: right(model, tokenizer, s, blind), usable_regimes(), split, count, size, label)


def shares(
    model: LlavaForConditionalGeneration,
    judge: Callable[[list[Sample]], list[list[bool]]],
    regimes: Sequence[str],
    split: str,
    count: int,
    size: int,
    label: str,
) -> dict[str, float]:
    """Regime -> share of questions that `judge` finds right, over `count` samples a regime, `size` at a time; the model
    is in evaluation mode meanwhile."""
    model.eval()
    table = {}
    for regime in track(regimes, description=label, disable=not sys.stderr.isatty()):
        hits: list[bool] = []
        for first in range(0, count, size):
            samples = [regime_sample(regime, split, i) for i in range(first, min(first + size, count))]
            hits += [hit for row in judge(samples) for hit in row]
        table[regime] = sum(hits) / max(1, len(hits))
    model.train()
    return table


def main(argv: list[str] | None = None) -> None:
    """Prints the table and, with --out, writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=200, help="pictures per regime")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = build_tokenizer()
    seen, blind = (accuracy(model, tokenizer, args.split, args.count, blind=b) for b in (False, True))
    print(f"{args.split} split, {args.count} pictures a regime, at most {TEXT} text tokens each")
    print(f"{'regime':<12} {'accuracy':>8} {'blind':>8}")
    for regime, value in seen.items():
        print(f"{regime:<12} {value:>8.3f} {blind[regime]:>8.3f}")
    if args.out:
        args.out.write_text(
            json.dumps({"split": args.split, "count": args.count, "accuracy": seen, "blind": blind}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

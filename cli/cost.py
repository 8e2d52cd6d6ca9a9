"""`foveate cost`: what a plan will cost on a model, from its configuration alone."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.cli.reading import PLAN_HELP, check_runs, read_plan
from foveate.cli.text import columns, flops
from foveate.plans.plan import STAGES, UNCOMPRESSED, Plan

if TYPE_CHECKING:
    from foveate.models.host import Host

EXAMPLE = 'foveate cost --model qwen2.5-vl-7b --image 1024x768 --plan "outside:visionzip@0.25" --text 24'
MODEL_HELP = "reference, a folder, a config.json, a shipped configuration's name, such as llava-1.5-7b, or a hub id"

Size = tuple[int, int]
"""(width, height) in pixels."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--model", default="reference", metavar="CONFIG", help=MODEL_HELP)
    parser.add_argument("--dtype", help="of the weights, and so of the KV cache (default: the configuration's)")
    parser.add_argument("--plan", default="none", help=PLAN_HELP)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="WxH",
        help="a picture's size in pixels, once for each picture (default: one of the model's usual size)",
    )
    parser.add_argument(
        "--text", type=int, default=32, metavar="N", help="prompt tokens beside the pictures' own (default: 32)"
    )
    parser.add_argument("--answer", type=int, default=8, metavar="N", help="answer tokens, end included (default: 8)")
    parser.add_argument("--turns", type=int, default=1, metavar="N", help="questions about the picture (default: 1)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Prints the cost."""
    sizes = [size_of(text) for text in args.image]
    plan = read_plan(args.plan)
    from foveate.models.on_paper import paper_host  # torch and transformers, once the arguments are known to be right

    found = cost(paper_host(args.model, args.dtype), plan, args.text, args.answer, args.turns, sizes)
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def size_of(text: str) -> Size:
    """The picture size that "1024x768" says. Raises: ValueError."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
    if match is None:
        raise ValueError(f"--image {text!r}: needs a width and a height in pixels, such as 1024x768")
    return int(match[1]), int(match[2])


def cost(
    host: Host, plan: Plan, n_text: int, answer: int = 8, turns: int = 1, sizes: Sequence[Size] = ()
) -> dict[str, Any]:
    """The forecast of a plan beside that of the uncompressed pass.

    Args:
        host: a model, loaded or not.
        plan: which methods.
        n_text: prompt tokens that are text, beside the markers that pictures bring along.
        answer: tokens generated, the end token included.
        turns: questions about the pictures.
        sizes: of the pictures; none = one of the model's usual size.
    Returns:
        Plain data: FLOPs, tokens and KV bytes by stage, for both.
    Raises:
        ValueError: a plan that the model cannot run, or a number out of range.
    """
    from foveate.models.on_paper import picture_shape

    shape = picture_shape(host, sizes, n_text)
    check_runs(host, plan, shape)
    both = {"plan": plan, "uncompressed": UNCOMPRESSED}
    found: dict[str, Any] = {
        "model": host.name,
        "label": plan.label(),
        "images": [list(size) for size in sizes],
        "views": len(shape.grids),
        "visual_tokens": shape.n_visual,
        "text": n_text,
        "text_with_markers": shape.n_text,
        "answer": answer,
        "turns": turns,
    }
    for name, each in both.items():
        ledger = host.forecast(each, shape, answer, turns)
        totals = {"flops": ledger.total, "matrix_flops": ledger.matrix_total, "kv_bytes": ledger.kv_bytes_end}
        found[name] = {**totals, "by_stage": ledger.by_stage(), "tokens": dict(ledger.tokens)}
    found["share"] = found["plan"]["flops"] / found["uncompressed"]["flops"]
    return found


def table(found: dict[str, Any]) -> str:
    """The cost as text."""
    plan, full = found["plan"], found["uncompressed"]
    stages = [*STAGES, *(s for s in full["by_stage"] | plan["by_stage"] if s not in STAGES)]
    rows = []
    for stage in stages:
        mine, other = plan["by_stage"].get(stage, 0), full["by_stage"].get(stage, 0)
        tokens = (plan["tokens"].get(stage, "-"), full["tokens"].get(stage, "-"))
        rows.append((stage, tokens[0], flops(mine), tokens[1], flops(other)))
    rows.append(("total", "", flops(plan["flops"]), "", flops(full["flops"])))
    rows.append(("KV cache", "", f"{plan['kv_bytes']} B", "", f"{full['kv_bytes']} B"))
    head = ("stage", "tokens after", found["label"], "tokens after", "none")
    text = columns(head, rows, right=(1, 2, 3, 4))
    sizes = ", ".join(f"{w}x{h}" for w, h in found["images"]) or "the usual size"
    views = f"{found['views']} view{'s' if found['views'] > 1 else ''}"
    prompt = f"{found['visual_tokens']} visual tokens and {found['text_with_markers']} of text"
    share = f"{100 * found['share']:.1f} % of the uncompressed FLOPs"
    return f"{found['model']}, pictures of {sizes}: {views}, {prompt}\n\n{text}\n\n{share}"

"""How long the prefill of LLaVA-1.5-7B takes, uncompressed and by six methods at 192, 128 and 64 tokens; and how much
of what FLOPs say is saved any methods save on the clock.

The model has the published shape and random weights: times do not depend on what weights say. All plans take turns in
one run, so that whatever the machine does to one it does to all; choosing is part of what is timed. `--small` puts a
decoder of 12 layers of width 1024 behind the same tower and its 576 tokens, for machines without a GPU.

Run it as `python -m foveate.analysis.prefill_times --device cuda --out runs/prefill_times.json`, or with
`--small --device cpu --dtype float32 --methods prefill:fastv,prefill:pyramiddrop,prefill:pact,prefill:topv
--tokens 144`. A Markdown page goes beside the JSON file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from foveate.analysis.machine import in_words, machine, settle
from foveate.compressors.registry import COMPRESSORS
from foveate.models.host import Host
from foveate.models.on_paper import random_host, shipped_models
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.policies.export import library_versions

MODEL = "llava-1.5-7b"
TOKENS = (192, 128, 64)
"""Of 576; a smaller model keeps the same shares."""

METHODS = (
    ("outside", "visionzip"),
    ("outside", "vispruner"),
    ("outside", "diversity"),
    ("outside", "hiprune"),
    ("prefill", "fastv"),
    ("prefill", "pyramiddrop"),
)
BAR = 0.8
"""Share of the saving that FLOPs promise which the clock should show."""

LIBRARIES = ("torch", "transformers", "numpy")
TINY: dict[str, dict[str, Any]] = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    | {"image_size": 84, "patch_size": 14},
    "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 2}
    | {"num_key_value_heads": 2},
}
"""What `--tiny` puts in place of the published sizes."""

SMALL: dict[str, dict[str, Any]] = {
    "text_config": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
    | {"num_key_value_heads": 16},
}
"""The same of `--small`."""

SIZES: dict[str, dict[str, dict[str, Any]]] = {"tiny": TINY, "small": SMALL, "random weights": {}}
Methods = Sequence[tuple[str, str]]


def plans(methods: Methods = METHODS, tokens: Sequence[int] = TOKENS) -> list[tuple[str, Plan]]:
    """Names and plans; a method's count is what its last cut leaves."""
    made = [("uncompressed", UNCOMPRESSED)]
    for stage, method in methods:
        made += [(f"{method} {count}", Plan.of(**{stage: (method, count / 576)})) for count in tokens]
    return made


def config_of(size: str) -> Any:
    """The configuration of one of `SIZES`."""
    raw = json.loads(shipped_models()[MODEL].read_text(encoding="utf-8"))
    raw |= {part: raw[part] | sizes for part, sizes in SIZES[size].items()}
    vision = raw["vision_config"]
    raw["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    return AutoConfig.for_model(raw.pop("model_type"), **raw)


def build(size: str, dtype: torch.dtype, device: str, seed: int) -> Host:
    """The model of one of `SIZES` with random weights."""
    return random_host(config_of(size), f"{MODEL}, {size}", dtype, device, seed)


def timed(host: Host, plan: Plan, images: Sequence[np.ndarray], questions: Sequence[str]) -> dict[str, float]:
    """One pass: milliseconds before the decoder and of its prefill, and the device's peak memory in bytes."""
    device = host.device
    p, seconds = host.open(images, questions), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def stage(name: str, act: Callable[..., None]) -> None:
        choice = plan[name]
        act(None if choice.is_none else host.make(name, choice.method), choice.keep)

    for acts in ((("encoder", p.encode), ("outside", p.thin), ("projector", p.project)), (("prefill", p.prefill),)):
        settle(device)
        start = time.perf_counter()
        for name, act in acts:
            stage(name, act)
        settle(device)
        seconds.append(time.perf_counter() - start)
    found = {"before_ms": 1e3 * seconds[0], "prefill_ms": 1e3 * seconds[1]}
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def measure(
    host: Host,
    text: int,
    batch: int,
    warm_up: int,
    repeats: int,
    seed: int,
    methods: Methods = METHODS,
    tokens: Sequence[int] = TOKENS,
) -> list[dict[str, Any]]:
    """One entry for each plan: medians over repeats, all plans taking turns, and what the cost model says.

    Shares are medians of the ratios to the uncompressed pass of the same turn.
    """
    side = host.grid[1] * host.shape.vit.patch
    images = [np.random.default_rng(seed + i).integers(0, 256, (side, side, 3), dtype=np.uint8) for i in range(batch)]
    words = text - host.inputs.n_text("")
    if words < 0:
        raise ValueError(f"--text {text}: the prompt alone has {text - words} tokens")
    questions = [" ".join(["word"] * words)] * batch
    shape = host.inputs.row(images[0], questions[0], 0).shape
    compared = plans(methods, tokens)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, _ in compared}
    for turn in range(warm_up + repeats):
        for name, plan in compared:
            found = timed(host, plan, images, questions)
            if turn >= warm_up:
                runs[name].append(found)
    entries = []
    for name, plan in compared:
        ledger = host.forecast(plan, shape)
        entry: dict[str, Any] = {"plan": name, "label": plan.label(), "tokens": ledger.tokens["prefill"]}
        entry |= {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
        prefill = [run["prefill_ms"] for run in runs[name]]
        entry |= {"prefill_ms_range": [min(prefill), max(prefill)], "flops": batch * ledger.total}
        entry |= {"prefill_flops": batch * ledger.by_stage()["prefill"]}
        turns = list(zip(runs[name], runs["uncompressed"], strict=True))
        entry["prefill_share"] = statistics.median(own["prefill_ms"] / full["prefill_ms"] for own, full in turns)
        entry["whole_share"] = statistics.median(whole(own) / whole(full) for own, full in turns)
        entries.append(entry | realised(entry, entries[0] if entries else entry))
    return entries


def whole(run: dict[str, float]) -> float:
    """Milliseconds of all of a pass."""
    return run["before_ms"] + run["prefill_ms"]


def realised(entry: dict[str, Any], full: dict[str, Any]) -> dict[str, float | None]:
    """What the clock saves of what FLOPs say, of the prefill and of the whole pass; None where they say nothing."""
    found: dict[str, float | None] = {}
    for part, flops in (("prefill", "prefill_flops"), ("whole", "flops")):
        promised = 1 - entry[flops] / full[flops]
        found[f"{part}_realised"] = (1 - entry[f"{part}_share"]) / promised if promised > 0 else None
    return found


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The entries as Markdown; shares are of the uncompressed pass."""
    full = entries[0]
    lines = ["| plan | tokens | prefill, ms | share | FLOPs of it | realised | before, ms | share of the whole pass |"]
    lines[0] += " FLOPs | realised | peak, GiB |"
    lines.append("|---|" + "---:|" * 10)
    for e in entries:
        peak = f"{e['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in e else "-"
        cells = [e["plan"], e["tokens"], f"{e['prefill_ms']:.2f}"]
        for part, flops in (("prefill", "prefill_flops"), ("whole", "flops")):
            saved = e[f"{part}_realised"]
            cells += [f"{100 * share:.0f} %" for share in (e[f"{part}_share"], e[flops] / full[flops])]
            cells.append("-" if saved is None else f"{saved:.2f}")
            cells += [f"{e['before_ms']:.2f}"] if part == "prefill" else [peak]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


HEAD = """# Milliseconds of the prefill

Made by `{command}`.

* **Model**: {model}, {dtype}; {text} prompt tokens are text, batch {batch}.
* **Machine**: {device}, {threads} threads; {versions}; seed {seed}.
* Medians of {repeats} turns behind {warm_up}, all plans in each turn; shares are medians of the ratios to the
  uncompressed pass of the same turn, choosing included. FLOPs are the cost model's, choosing included.
* **Realised**: (1 - share of the time) / (1 - share of the FLOPs), of the prefill and of the whole pass with its tower.
  The bar is {bar} of the prefill. Reach it: {above}. Do not: {below}.

"""


def page(found: dict[str, Any]) -> str:
    """The table under what it was measured on, with the plans on either side of the bar."""
    judged = [(e["plan"], e["prefill_realised"]) for e in found["entries"] if e["prefill_realised"] is not None]
    sides = [[name for name, saved in judged if (saved >= BAR) == yes] for yes in (True, False)]
    above, below = (", ".join(side) or "none" for side in sides)
    head = HEAD.format(**found | {"versions": in_words(found["versions"]), "bar": BAR, "above": above, "below": below})
    return head + table(found["entries"]) + "\n"


def listed_methods(text: str) -> list[tuple[str, str]]:
    """Pairs from "stage:method,...". Raises: ArgumentTypeError where one is not registered."""
    pairs = [tuple(part.strip().split(":")) for part in text.split(",")]
    if unknown := [":".join(pair) for pair in pairs if pair not in COMPRESSORS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no registered STAGE:METHOD")
    return pairs


def listed_counts(text: str) -> list[int]:
    """Numbers from 1 to 576 from "144,64". Raises: ValueError."""
    counts = [int(part) for part in text.split(",")]
    if not all(1 <= count <= 576 for count in counts):
        raise ValueError(text)
    return counts


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the entries. Raises: ValueError on a number out of range."""
    parser = argparse.ArgumentParser(description="Prefill times of LLaVA-1.5-7B with random weights, plan by plan.")
    parser.add_argument("--device", default="cuda", help="as torch writes it (default: cuda)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--text", type=int, default=64, help="prompt tokens that are text (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="rows of a pass (default: 1)")
    parser.add_argument("--warm-up", type=int, default=3, help="turns that are not counted (default: 3)")
    parser.add_argument("--repeats", type=int, default=20, help="turns that are (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures (default: 0)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="a model of a few thousand weights, to see that all runs")
    size.add_argument("--small", action="store_true", help="a decoder of 12 layers of width 1024 behind the same tower")
    parser.add_argument("--methods", type=listed_methods, default=METHODS, metavar="STAGE:METHOD,...")
    parser.add_argument("--tokens", type=listed_counts, default=TOKENS, metavar="A,B", help="of 576")
    parser.add_argument("--out", type=Path, help="JSON file for the entries; the page goes beside it as .md")
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    if min(args.batch, args.repeats) < 1 or args.warm_up < 0:
        parser.error("--batch and --repeats must be at least 1, --warm-up at least 0")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu --tiny shows that all runs")
    named = "tiny" if args.tiny else "small" if args.small else "random weights"
    host = build(named, getattr(torch, args.dtype), args.device, args.seed)
    settings = {key: getattr(args, key) for key in ("dtype", "text", "batch", "warm_up", "repeats", "seed")}
    found = {"command": shlex.join(["python", "-m", "foveate.analysis.prefill_times", *argv]), "model": host.name}
    found |= {"device": device_name(host.device), "threads": torch.get_num_threads()}
    found |= {"versions": library_versions(LIBRARIES), **settings}
    asked = (args.text, args.batch, args.warm_up, args.repeats, args.seed, args.methods, args.tokens)
    found["entries"] = measure(host, *asked)
    print(page(found), end="")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()

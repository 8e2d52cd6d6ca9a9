"""How long the prefill of LLaVA-1.5-7B takes, uncompressed and by six methods at 192, 128 and 64 tokens.

The model has the published shape and random weights: times do not depend on what weights say. All plans take turns in
one run, so that whatever the machine does to one it does to all.

Run it as `python -m foveate.analysis.prefill_times --device cuda --out runs/prefill_times.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from foveate.analysis.machine import settle
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
LIBRARIES = ("torch", "transformers", "numpy")
TINY: dict[str, dict[str, Any]] = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    | {"image_size": 84, "patch_size": 14},
    "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 2}
    | {"num_key_value_heads": 2},
}
"""What `--tiny` puts in place of the published sizes."""


def plans() -> list[tuple[str, Plan]]:
    """Names and plans; a method's count is what its last cut leaves."""
    made = [("uncompressed", UNCOMPRESSED)]
    for stage, method in METHODS:
        made += [(f"{method} {count}", Plan.of(**{stage: (method, count / 576)})) for count in TOKENS]
    return made


def build(tiny: bool, dtype: torch.dtype, device: str, seed: int) -> Host:
    """The model with random weights."""
    raw = json.loads(shipped_models()[MODEL].read_text(encoding="utf-8"))
    if tiny:
        raw |= {part: raw[part] | sizes for part, sizes in TINY.items()}
        raw["image_seq_length"] = (TINY["vision_config"]["image_size"] // TINY["vision_config"]["patch_size"]) ** 2
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    return random_host(config, f"{MODEL}, {'tiny' if tiny else 'random weights'}", dtype, device, seed)


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


def measure(host: Host, text: int, batch: int, warm_up: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    """One entry for each plan: medians over repeats, all plans taking turns, and what the cost model says."""
    side = host.grid[1] * host.shape.vit.patch
    images = [np.random.default_rng(seed + i).integers(0, 256, (side, side, 3), dtype=np.uint8) for i in range(batch)]
    words = text - host.inputs.n_text("")
    if words < 0:
        raise ValueError(f"--text {text}: the prompt alone has {text - words} tokens")
    questions = [" ".join(["word"] * words)] * batch
    shape = host.inputs.row(images[0], questions[0], 0).shape
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, _ in plans()}
    for turn in range(warm_up + repeats):
        for name, plan in plans():
            found = timed(host, plan, images, questions)
            if turn >= warm_up:
                runs[name].append(found)
    entries = []
    for name, plan in plans():
        ledger = host.forecast(plan, shape)
        entry: dict[str, Any] = {"plan": name, "label": plan.label(), "tokens": ledger.tokens["prefill"]}
        entry |= {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
        prefill = [run["prefill_ms"] for run in runs[name]]
        entries.append(entry | {"prefill_ms_range": [min(prefill), max(prefill)], "flops": batch * ledger.total})
    return entries


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The entries as Markdown; shares are of the uncompressed pass."""
    full = entries[0]
    lines = ["| plan | tokens | prefill, ms | share | before, ms | FLOPs share | peak, GiB |"]
    lines.append("|---|" + "---:|" * 6)
    for e in entries:
        peak = f"{e['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in e else "-"
        less, flops = (f"{100 * e[key] / full[key]:.0f} %" for key in ("prefill_ms", "flops"))
        cells = [e["plan"], e["tokens"], f"{e['prefill_ms']:.2f}", less, f"{e['before_ms']:.2f}", flops, peak]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def machine(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


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
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights, to see that all runs")
    parser.add_argument("--out", type=Path, help="JSON file for the entries")
    args = parser.parse_args(argv)
    if min(args.batch, args.repeats) < 1 or args.warm_up < 0:
        parser.error("--batch and --repeats must be at least 1, --warm-up at least 0")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu --tiny shows that all runs")
    host = build(args.tiny, getattr(torch, args.dtype), args.device, args.seed)
    settings = {key: getattr(args, key) for key in ("dtype", "text", "batch", "warm_up", "repeats", "seed")}
    entries = measure(host, args.text, args.batch, args.warm_up, args.repeats, args.seed)
    found = {"model": host.name, "device": machine(host.device), "versions": library_versions(LIBRARIES), **settings}
    print(f"{host.name} on {found['device']}, {settings}, {found['versions']}\n\n{table(entries)}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found | {"entries": entries}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

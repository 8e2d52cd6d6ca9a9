"""What published models cost under a few plans: a page made from their configurations, no weight is read.

Run it as `python -m foveate.analysis.costs --out docs/costs.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from foveate.analysis.machine import in_words
from foveate.models.host import Host
from foveate.models.inputs import PromptShape
from foveate.models.on_paper import paper_host, picture_shape
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan
from foveate.policies.export import library_versions

MODELS = (
    "llava-1.5-7b",
    "llava-1.5-13b",
    "llava-1.6-7b",
    "llava-onevision-7b",
    "qwen2.5-vl-3b",
    "qwen2.5-vl-7b",
    "qwen2.5-vl-72b",
    "qwen3-vl-8b",
    "internvl3-8b",
    "smolvlm2-2.2b",
)
WIDTH, HEIGHT, TEXT, ANSWER = 1024, 768, 64, 16
THIRD, TWO_NINTHS, NINTH = (Fraction(n, 576) for n in (192, 128, 64))
"""What papers call 192, 128 and 64 tokens, as shares of the 576 of LLaVA-1.5."""

PLANS: tuple[tuple[str, Plan], ...] = (
    ("uncompressed", UNCOMPRESSED),
    *((f"visionzip {share}", Plan.of(outside=("visionzip", float(share)))) for share in (THIRD, TWO_NINTHS, NINTH)),
    ("pixels 1/4", Plan.of(input=("downsample", 0.25))),
    ("tome 1/2 in the tower", Plan.of(encoder=("tome", 0.5))),
    ("fastv 1/2", Plan.of(prefill=("fastv", 0.5))),
    ("pyramiddrop 1/8", Plan.of(prefill=("pyramiddrop", 0.125))),
    ("visionzip 1/3, fastv 1/2", Plan.of(outside=("visionzip", float(THIRD)), prefill=("fastv", 0.5))),
    ("look_m 1/2", Plan.of(decode=("look_m", 0.5))),
    ("blind", BLIND),
)
COMMAND = "python -m foveate.analysis.costs --out docs/costs.md"
GPU_COMMAND = "python -m foveate.analysis.prefill_times --device cuda --out runs/prefill_times.json"

HEAD = """# What published models cost

Made by `{command}`
({versions}); a test holds it to the code. Everything here is counted from
configurations (`configs/models/`): nothing is measured, no weight is read. `foveate cost` prints the same for any plan,
picture and configuration:

    foveate cost --model qwen2.5-vl-7b --image 1024x768 --plan "outside:visionzip@0.25 + prefill:fastv@0.5" --text 64

* **Pictures.** `--image WxH`, once for each picture, is laid out by the code that lays out real ones: tiles, newlines,
  markers, dynamic resolution. Without it a model gets one picture of its usual size. A folder's
  `preprocessor_config.json` decides where there is one; else the family's published settings do: LLaVA-1.5 crops to one
  view; LLaVA-NeXT and LLaVA-OneVision take the resolutions of their configuration; Qwen2.5-VL pictures have 3136 to
  12845056 pixels and Qwen3-VL ones 65536 to 16777216; InternVL cuts at most 12 tiles; SmolVLM and Idefics3 enlarge the
  longer side to four views.
* **Text.** `--text N` counts tokens beside those that pictures bring along (markers, newlines). Without a tokenizer in
  the folder each marker counts as one token, a run of line breaks as one: right for the shipped configurations; a
  tokenizer that spells markers as several tokens belongs beside its configuration.
* **FLOPs.** A multiply-add is 2; attention is the full square; norms, softmax and activations are estimated and
  counted in; blocks of the tower that no later part reads are not run. What methods compute themselves is in the
  columns of the tower and the prefill where they act there, else under `compress`.
* **KV** is the cache behind the answer, in the configuration's own number format.
* **Tokens** are those of the pictures behind the stage named; decoders with cuts at several layers: the last one's.
* A method keeps its share of each view (`visionzip 1/3` is 192 of LLaVA-1.5's 576 tokens), inside the decoder of all
  of them together. `pixels 1/4` shows a quarter of the tokens by a smaller picture.

The tables: one picture of {width} x {height} pixels, {text} tokens of text, an answer of {answer} tokens, one question.
"""

TAIL = """## Milliseconds on a GPU

Not measured: no GPU was at hand. The command is

    {gpu}

It builds LLaVA-1.5-7B with random weights in bfloat16 on the device (about 14 GB) and times the prefill, uncompressed
against six methods at 192, 128 and 64 tokens, all in one run: medians after warm-up, peak memory, versions, device.
"""


def page() -> str:
    """The whole page."""
    versions = in_words(library_versions(("torch", "transformers")))
    values = {"width": WIDTH, "height": HEIGHT, "text": TEXT, "answer": ANSWER}
    parts = [HEAD.format(command=COMMAND, versions=versions, **values)]
    return "\n".join([*parts, *(section(model) for model in MODELS), TAIL.format(gpu=GPU_COMMAND)])


def section(model: str) -> str:
    """One model's table."""
    host = paper_host(model)
    shape = picture_shape(host, [(WIDTH, HEIGHT)], TEXT)
    grids = sorted(set(shape.grids))
    views = f"{len(shape.grids)} view{'s' * (len(shape.grids) > 1)} of " + ", ".join(f"{h} x {w}" for _, h, w in grids)
    shown = f"{shape.n_visual} of them in the prompt, beside {shape.n_text} of text, markers and newlines"
    head = "| plan | outside | prefill | tower | compress | projector | prefill | answer | total | share | KV, MiB |"
    units = "| | tokens | tokens | TFLOPs | GFLOPs | TFLOPs | TFLOPs | TFLOPs | TFLOPs | | |"
    lines = [f"## {model}", "", f"{views} tokens, {shown}.", "", head, "|---|" + "---:|" * 10, units]
    full = host.forecast(UNCOMPRESSED, shape, ANSWER).total
    return "\n".join([*lines, *(line(host, name, plan, shape, full) for name, plan in PLANS)]) + "\n"


def line(host: Host, name: str, plan: Plan, shape: PromptShape, full: int) -> str:
    """One row of a table; a plan that the model cannot run says why."""
    try:
        ledger = host.forecast(plan, shape, ANSWER)
    except ValueError as error:
        return f"| {name} | {str(error).split(': ', 1)[-1]} |" + " |" * 9
    stages = ledger.by_stage()
    tera = [stages.get(stage, 0) / 1e12 for stage in ("encoder", "projector", "prefill", "answer")]
    # what methods compute at stages where the model itself does nothing
    giga = sum(stages.get(stage, 0) for stage in ("input", "outside", "decode")) / 1e9
    cells = [name, ledger.tokens["outside"], ledger.tokens["prefill"], f"{tera[0]:.3f}", f"{giga:.2f}"]
    cells += [f"{value:.3f}" for value in (*tera[1:], ledger.total / 1e12)]
    cells += [f"{100 * ledger.total / full:.1f} %", f"{ledger.kv_bytes_end / 2**20:.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description="What published models cost under a few plans, as a Markdown page.")
    parser.add_argument("--out", type=Path, required=True, help="the page, such as docs/costs.md")
    args = parser.parse_args(argv)
    args.out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

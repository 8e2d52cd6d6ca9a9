"""The reference model's card, made from the model: accuracy with and without the picture, cost by stage, and how
compressible each regime is.

Run it as `python -m foveate.analysis.card --n 480`; it writes models/reference/card.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from foveate.analysis.bench import Row, bench_plans, best_methods, keep_at_loss, rows_of
from foveate.models import load_host
from foveate.models.host import Host
from foveate.models.reference import WEIGHTS
from foveate.plans.plan import BLIND, UNCOMPRESSED
from foveate.rollouts.replay import fill
from foveate.tasks.registry import iter_samples

TASKS = ("scenes", "reading", "documents", "charts", "digits", "pictures", "easy_vqa")
METHODS = ("random", "stride", "diversity", "visionzip", "tome")
RATIOS = (0.75, 0.5, 0.25, 0.11, 0.06)
EVALUATE = "python -m foveate.models.reference.evaluate --out models/reference/accuracy.json"
HEAD = """# Model card: the reference model

A LLaVA of {parameters:.2f} million parameters that answers questions about 96 x 96 pictures: a CLIP-type ViT with CLS
(7 blocks of width 96, the sixth feeds the decoder; 144 patches of 8 px), a two-layer MLP projector, a LLaMA decoder
(8 layers of width 160). Beside it a text tower of {tower:.2f} million parameters, trained with CLS by contrast. It
exists so that compression has something to cost: answers that are right or wrong on real weights, offline, on a CPU. It
is not for use on photographs from the street.

* **Load**: `AutoModelForImageTextToText.from_pretrained(folder)` and `AutoProcessor.from_pretrained(folder)` with
  `folder = foveate.models.reference.WEIGHTS`; bfloat16 on disk, computed in float32.
* **Data**: the host-train split of the built-in tasks (`tasks/card.md`), drawn without end, seed 0. No picture, scene
  programme, font or handwritten digit of the other splits is in it.
* **Recipe**: `python -m foveate.models.reference.train`, seed 0: {recipe}.
* **Figures**: {machine}; greedy exact match on the test split; made by `python -m foveate.analysis.card --n {n}`.
"""


def history(log: Path) -> str:
    """One phrase per stage of the training log: steps and hours. The hours of earlier stages are taken off."""
    last: dict[str, dict[str, float]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        last[entry["stage"]] = entry
    parts, before = [], 0.0
    for stage, entry in last.items():
        parts.append(f"`{stage}` {entry['step']} steps in {entry['hours'] - before:.2f} h")
        before = entry["hours"]
    return ", ".join(parts)


def regimes_table(seen: dict[str, float], blind: dict[str, float], rows: Sequence[Row]) -> str:
    """Accuracy, blind accuracy, and the keep ratio at which random dropping costs five points."""
    lines = ["| regime | accuracy | blind | random dropping costs 5 points at keep |", "|---|---|---|---|"]
    for regime, value in seen.items():
        keep = keep_at_loss(rows, regime, "outside", "random")
        lines.append(f"| {regime} | {value:.3f} | {blind[regime]:.3f} | {keep:.2f} |")
    return "\n".join(lines)


def outside_table(rows: Sequence[Row]) -> str:
    """Accuracy per regime of the methods at `outside`, with 95 % intervals."""
    regimes = list(rows[0].regimes)
    lines = ["| plan | " + " | ".join(regimes) + " |", "|---" * (len(regimes) + 1) + "|"]
    for row in rows:
        cells = ("{:.2f} ({:.2f}-{:.2f})".format(*row.regimes[regime]) for regime in regimes)
        lines.append(f"| {row.plan.label()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_table(rows: Sequence[Row]) -> str:
    """Which method is best where; a star where the intervals of best and second are apart."""
    lines = ["| keep | " + " | ".join(rows[0].regimes) + " |", "|---" * (len(rows[0].regimes) + 1) + "|"]
    for keep in RATIOS:
        best = best_methods(rows, "outside", keep)
        lines.append(
            f"| {keep} | " + " | ".join(f"{first}{' *' if apart else ''}" for first, _, apart in best.values()) + " |"
        )
    return "\n".join(lines)


def stage_shares(host: Host) -> str:
    """Share of each stage in an uncompressed pass with a typical question."""
    ledger = host.forecast(UNCOMPRESSED, host.prompt_shape(16))
    shares = {stage: flops / ledger.total for stage, flops in ledger.by_stage().items()}
    return f"{ledger.total / 1e9:.3f} GFLOPs: " + ", ".join(
        f"{stage} {100 * share:.1f} %" for stage, share in shares.items()
    )


def card(n: int, log: Path, work: Path) -> str:
    """The whole text.

    Args:
        n: test pictures, spread evenly over the regimes.
        log: `log.jsonl` of the training.
        work: folder for the replay table.
    """
    host = load_host("reference")
    samples = list(iter_samples(TASKS, "test", n))
    measured = json.loads((WEIGHTS.parent / "accuracy.json").read_text())
    plans, _ = bench_plans(host, ("outside",), RATIOS, METHODS)
    table = fill(host, samples, plans, work / "outside.parquet")
    rows = rows_of(table)
    size = sum(p.numel() for p in host.model.parameters()) / 1e6
    tower = sum(p.numel() for p in host.text.model.parameters()) / 1e6
    machine = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, CPU"
    )
    text = HEAD.format(parameters=size, tower=tower, recipe=history(log), machine=machine, n=n)
    kept = [row for row in rows if row.plan != BLIND]
    text += f"\n## Cost of an uncompressed pass\n\n{stage_shares(host)}.\n"
    count = measured["count"]
    text += f"\n## Accuracy by regime\n\n{count} pictures a regime, two to five questions each, by\n`{EVALUATE}`.\n"
    text += "The keep ratio is measured on the questions of the next section.\n\n"
    text += regimes_table(measured["accuracy"], measured["blind"], kept) + "\n"
    text += (
        f"\n## Dropping and merging at `outside`\n\n{table.n} questions; 95 % intervals, bootstrap by scene family.\n\n"
    )
    text += outside_table(rows) + "\n"
    text += f"\n## Best method at `outside`\n\nA star: its interval lies above the runner-up's.\n\n{best_table(kept)}\n"
    return text


def main(argv: list[str] | None = None) -> None:
    """Writes the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=480, help="test pictures")
    parser.add_argument("--log", type=Path, default=WEIGHTS.parent / "training.jsonl", help="log of the training")
    parser.add_argument("--work", type=Path, default=Path("runs/card"))
    parser.add_argument("--out", type=Path, default=WEIGHTS.parent / "card.md")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.write_text(card(args.n, args.log, args.work))
    print(args.out)


if __name__ == "__main__":
    main()

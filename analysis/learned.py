"""How well learned compressors learnt: a page made from the figures that their weights files carry.

Run it as `python -m foveate.analysis.learned --out docs/bench/learned.md`. Nothing is measured again: a figure was made
with the numbers that lie in the file, by `foveate distill`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from foveate.models import load_host
from foveate.models.distilling.judge import Figure
from foveate.models.learned import SUFFIX, about, home

HEAD = ("method", "parameters", "steps", "batch", "rate", "keep", "tokens", "KL", "pooling", "agrees, %", "pooling, %")


def entries(folder: str | Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """("stage:name", parameters, what the file tells) of each weights file with figures, by name.

    Raises:
        ValueError: no such file in the folder.
    """
    paths = sorted(Path(folder).glob(f"*-*{SUFFIX}"))
    if not paths:
        raise ValueError(f"{folder}: no weights of learned methods there; `foveate distill METHOD` makes them")
    for path in paths:
        told = about(path)
        if not told.get("figures"):
            continue  # made by another command, or judged by nothing
        with safe_open(path, framework="pt") as file:
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        yield told["method"], parameters, told


def page(folder: str | Path, model: str) -> str:
    """The Markdown page of a folder of weights."""
    found = list(entries(folder))
    data = sorted({told["data"] for *_, told in found})
    rows = sorted({each["rows"] for *_, told in found for each in told["figures"]})
    lines = [
        "# Learned compressors against pooling",
        "",
        f"Made by `python -m foveate.analysis.learned --model {model}` from the weights files' own figures (seed "
        f"{', '.join(sorted({str(told['seed']) for *_, told in found}))}).",
        "",
        f"* **Trained on**: {'; '.join(data)} (host-train split), by `foveate distill`: steps on features + steps on",
        "  answers, and what multiplied the method's own learning rates.",
        f"* **Judged on**: {', '.join(map(str, rows))} inputs of the validation split that both methods can give equal",
        "  counts on; of a method between decoder layers `tokens` is the mean over layers.",
        "* **KL**: divergence of the next token behind the method from that behind all tokens, in nats, mean over the",
        "  answer's places; **agrees**: equal arg-maxima. **Pooling**: `average_pool` to as many tokens, or",
        "  `tubelets`, whose means reach over time too, where a video's counts ask for it.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---" * 2 + "|---:" * (len(HEAD) - 2) + "|",
    ]
    for method, parameters, told in found:
        taken = told["steps_a"] if "features" in told["recipe"] else 0
        steps = f"{taken} + {told['steps_b']}"
        first: Sequence[Any] = (method, parameters, steps, told["batch"], f"{told.get('rate', 1.0):g}")
        for each in (Figure(**figure) for figure in told["figures"]):
            own = f"**{each.kl:.3f}**" if each.better else f"{each.kl:.3f}"
            figures = (f"{each.keep:.3f}", f"{each.count:.1f}", own, f"{each.pool_kl:.3f}")
            shares = (f"{100 * each.agreement:.1f}", f"{100 * each.pool_agreement:.1f}")
            cells, first = (*first, *figures, *shares), ("",) * len(first)  # what all rows share stands in the first
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "In bold: nearer to the uncompressed answers than pooling, and agreeing no less often."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Writes the page, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference", help="whose weights: a name, a folder or a hub id")
    parser.add_argument("--learned", type=Path, metavar="FOLDER", help="of the weights (default: the model's own)")
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        text = page(args.learned or home(load_host(args.model)), args.model)
    except ValueError as error:
        raise SystemExit(f"learned: {error}") from None
    if args.out is None:
        print(text, end="")
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

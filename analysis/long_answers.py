"""Methods in the cache on long answers, where they matter: pages read out, and the uncompressed model's own words.

Two kinds of answers of at least 64 tokens, on the same methods and ratios. Read out: every value of a page is asked for
behind one compressed cache (`analysis.readouts`); what stands there is known. Own words: the uncompressed model goes on
for 64 tokens, whatever it says, and under the same words every method's next-token distributions are compared with its.
The reference has never learned to write so long: of its words that is all to be had, so what is read out judges first.

Run it as `python -m foveate.analysis.long_answers --out runs/long_answers.md`; entries go to a JSON file beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.analysis.bench import bench_plans
from foveate.analysis.machine import in_words, machine
from foveate.analysis.readouts import Grade, Page, graded, pages
from foveate.analysis.walls import Wall, median, paired
from foveate.compressors.registry import COMPRESSORS
from foveate.envs.inputs import Input, input_of
from foveate.models import load_host
from foveate.models.answers import forced
from foveate.models.behind import Continuation
from foveate.models.host import Host
from foveate.models.passes import Pass
from foveate.plans.plan import BLIND, STAGES, UNCOMPRESSED, Choice, Plan
from foveate.policies.export import library_versions
from foveate.rollouts.bar import bar
from foveate.rollouts.replay import layouts
from foveate.tasks.base import SPLITS
from foveate.tasks.registry import regime_sample
from foveate.tasks.splits import stream

READ = ("tables", "receipts", "forms", "transcript")
"""Regimes whose pages are read out."""

WRITTEN = (*READ, "reading")
"""Regimes that the model writes about in its own words."""

TOKENS = 64
TOGETHER = 8


@dataclass(frozen=True)
class Own:
    """A method under the uncompressed model's words.

    Attributes:
        agree: share of the positions at which both would say the same.
        kl: mean over positions of the KL divergence from the uncompressed model's next-token distribution, in nats.
    """

    agree: float
    kl: float


@dataclass(frozen=True)
class Found:
    """One plan.

    Attributes:
        plan: which.
        read: regime -> how its pages were read out.
        own: under the uncompressed model's words.
        wall: times and bytes of passes of one row and `TOKENS` tokens; None = not timed.
    """

    plan: Plan
    read: Mapping[str, Grade]
    own: Own
    wall: Wall | None

    def mean(self, part: str) -> float:
        """Of a part of the grades, every regime alike."""
        return sum(getattr(grade, part) for grade in self.read.values()) / len(self.read)

    def entry(self) -> dict[str, Any]:
        """As plain data."""
        read = {regime: asdict(grade) for regime, grade in self.read.items()}
        means = {f"mean_{part}": self.mean(part) for part in ("right", "alike")}
        wall = None if self.wall is None else asdict(self.wall)
        return {"plan": self.plan.label(), **means, "read": read, "own_words": asdict(self.own), "wall": wall}


def written(regimes: Sequence[str], split: str, n: int, seed: int) -> list[Input]:
    """The first question of `n` pages of each regime, drawn by the seed."""
    drawn = {regime: stream("long answers", regime, split, seed).sample(range(1000 * n), n) for regime in regimes}
    return [input_of(regime_sample(regime, split, index), 0) for regime, some in drawn.items() for index in some]


def opened(host: Host, asked: Sequence[Input], plan: Plan) -> Pass:
    """Rows behind their prompts, by a plan."""
    return host.open([each.image for each in asked], [each.question for each in asked]).run(plan)


@torch.no_grad()
def going_on(p: Pass, ids: Tensor) -> Tensor:
    """(B, T, V) log-probabilities of each of the tokens ids (B, T) where the answer must go on: ends are left out."""
    logits = forced(p, torch.arange(len(p), device=p.logits.device), ids[:, :-1])
    goes_on = [token for token in range(logits.shape[-1]) if token not in p.host.ends]
    return logits[..., goes_on].float().log_softmax(-1)


@torch.no_grad()
def own_words(host: Host, asked: Sequence[Input], tokens: int) -> tuple[Tensor, Tensor]:
    """What the uncompressed model greedily says, ids (B, tokens), no end among them; and what `going_on` says of it."""
    p, said = opened(host, asked, UNCOMPRESSED), []
    logits, ends = p.logits, torch.tensor(sorted(host.ends), device=p.logits.device)
    run = Continuation(host.decoder, p.caches, torch.arange(len(p), device=logits.device))
    for _ in range(tokens):
        said.append(logits.index_fill(-1, ends, -torch.inf).argmax(-1))
        logits = host.decoder.logits(run.feed(said[-1][:, None])[:, -1])
    ids = torch.stack(said, dim=1)
    return ids, going_on(p, ids)


def compared(full: Tensor, other: Tensor) -> Own:
    """Log-probabilities (B, T, V) of the uncompressed model and of another."""
    agree = (full.argmax(-1) == other.argmax(-1)).double().mean()
    return Own(float(agree), float((full.exp() * (full - other)).sum(-1).double().mean()))


@torch.no_grad()
def under_own_words(host: Host, inputs: Sequence[Input], plans: Sequence[Plan], tokens: int = TOKENS) -> list[Own]:
    """Every plan under what the uncompressed model says to every input."""
    found: list[list[tuple[int, Own]]] = [[] for _ in plans]
    with bar("own words", len(inputs) * len(plans), "rows") as advance:
        for start in range(0, len(inputs), TOGETHER):
            asked = inputs[start : start + TOGETHER]
            ids, full = own_words(host, asked, tokens)
            for plan, each in zip(plans, found, strict=True):
                each.append((len(asked), compared(full, going_on(opened(host, asked, plan), ids))))
                advance(len(asked))
    n = len(inputs)
    return [Own(sum(k * o.agree for k, o in each) / n, sum(k * o.kl for k, o in each) / n) for each in found]


def measured(
    host: Host,
    plans: Sequence[Plan],
    shown: Mapping[str, Sequence[Page]],
    inputs: Sequence[Input],
    rounds: int,
    tokens: int = TOKENS,
) -> list[Found]:
    """Everything about some plans.

    Args:
        host: the model.
        plans: the uncompressed one among them.
        shown: regime -> pages to read out.
        inputs: what to write about.
        rounds: pairs of passes that time a plan, of one row, each about another input; 0 = none.
        tokens: of an answer in own words.
    """
    own = under_own_words(host, inputs, plans, tokens)
    walls: list[list[Wall]] = [[] for _ in plans]
    with bar("timing", rounds * len(plans), "pairs", rounds > 0) as advance:
        if rounds:
            paired(host, inputs[:1], UNCOMPRESSED, tokens - 1)  # warms up
        for turn in range(rounds):
            for plan, each in zip(plans, walls, strict=True):
                each.append(paired(host, [inputs[turn % len(inputs)]], plan, tokens - 1))
                advance(1)
    found = []
    with bar("reading out", len(plans) * len(shown), "regimes") as advance:
        for plan, words, each in zip(plans, own, walls, strict=True):
            read = {}
            for regime, some in shown.items():
                read[regime] = graded(host, some, plan)
                advance(1)
            found.append(Found(plan, read, words, median(each) if each else None))
    return found


HEAD = """# Long answers

Made by `{command}`.

* **Model**: {model}, fingerprint {fingerprint}. **Machine**: {machine}, {device}, {threads} threads; {versions};
  seed {seed}, split {split}.
* **Read out**: {pages} pages of each regime, every value asked for in every wording behind one cache a page, which the
  first question has compressed. Values right to the letter, in percent, every regime alike; **alike**: 1 - edit
  distance / length of all that was said, in percent. Tokens said for a page, uncompressed: {said}.
* **Own words**: {n} pages of each of {written}; the uncompressed model's greedy {tokens} tokens, ends forbidden. Under
  them, **agree**: positions with the same arg-max, in percent; **KL**: from the uncompressed next-token distribution,
  in nats, mean over positions.
* **KV**: KiB of a row's caches behind the prompt before any choosing in them, and at the end of {tokens} tokens, with
  its share of the uncompressed; measured as memory. **Token**: time of each token behind the first, share of the
  uncompressed; {timed}.
"""


def markdown(found: Sequence[Found], header: Mapping[str, Any]) -> str:
    """The page: what was measured on what, and a line for each plan.

    Args:
        found: the uncompressed plan first.
        header: see `about`.
    """
    full, versions = found[0], in_words(header["versions"])
    said = ", ".join(f"{regime} {grade.tokens:.0f}" for regime, grade in full.read.items())
    timed = f"medians of {header['rounds']} rounds, one row" if header["rounds"] else "not measured"
    h = header | {"versions": versions, "fingerprint": header["fingerprint"][:12], "said": said, "timed": timed}
    lines = [*HEAD.format(**h | {"written": ", ".join(header["written"])}).splitlines(), ""]
    head = ["plan", "read out", "alike", *full.read, "agree", "KL", "KV prefill", "KV end", "token"]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for each in found:
        cells = [each.plan.label(), *(f"{100 * each.mean(part):.1f}" for part in ("right", "alike"))]
        cells += [f"{100 * grade.right:.0f}" for grade in each.read.values()]
        cells += [f"{100 * each.own.agree:.1f}", f"{each.own.kl:.3f}"]
        wall = each.wall
        if wall is None:
            cells += ["-"] * 3
        else:
            cells += [
                f"{wall.kv_prefill / 1024:.1f}",
                f"{wall.kv_end / 1024:.1f} ({wall.kv_end / full.wall.kv_end:.2f})",
            ]
            cells.append(f"{wall.token:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def about(args: argparse.Namespace, argv: Sequence[str], host: Host) -> dict[str, Any]:
    """What the figures depend on."""
    command = shlex.join(["python", "-m", "foveate.analysis.long_answers", *argv])
    on = {"machine": machine(), "device": str(host.device), "threads": torch.get_num_threads()}
    asked = {name: getattr(args, name) for name in ("split", "pages", "n", "tokens", "rounds", "seed")}
    versions = library_versions(("torch", "transformers", "numpy"))
    model = {"model": host.name, "fingerprint": host.fingerprint}
    return {"command": command, **model, **on, "versions": versions, **asked, "written": list(args.written)}


def keeps(text: str) -> tuple[float, ...]:
    """Comma-separated keep ratios. Raises: ValueError on one that is none."""
    return tuple(Choice("any", float(part)).keep for part in names(text))


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; refuses numbers out of range and unknown stages."""
    parser = argparse.ArgumentParser(prog="python -m foveate.analysis.long_answers", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", default="reference", help='"reference", a folder or a hub id (default: reference)')
    add("--learned", metavar="FOLDER", help="weights of learned methods")
    add("--dtype", default="float32")
    add("--device", default="cpu")
    add("--stages", type=names, default=("decode",), metavar="A,B", help="default: decode")
    add("--methods", type=names, metavar="A,B", help="methods (default: all of the stages)")
    add("--ratios", type=keeps, default=(0.75, 0.5, 0.25, 0.11), metavar="A,B", help="default: 0.75,0.5,0.25,0.11")
    add("--split", default="test", choices=SPLITS)
    add("--pages", type=int, default=12, metavar="N", help="pages of a regime to read out (default: 12)")
    add("--read", type=names, default=READ, metavar="A,B", help=f"their regimes (default: {','.join(READ)})")
    add("--n", type=int, default=8, metavar="N", help="pages of a regime to write about (default: 8)")
    add("--written", type=names, default=WRITTEN, metavar="A,B", help=f"their regimes (default: {','.join(WRITTEN)})")
    add("--tokens", type=int, default=TOKENS, metavar="N", help=f"of an answer in own words (default: {TOKENS})")
    add("--rounds", type=int, default=5, metavar="N", help="pairs of passes that time a plan; 0 = none (default: 5)")
    add("--seed", type=int, default=0, help="of the choice of pages (default: 0)")
    add("--out", type=Path, metavar="FILE", help="Markdown; JSON goes beside it (default: print alone)")
    args = parser.parse_args(argv)
    if min(args.pages, args.n) < 1 or args.tokens < 2 or args.rounds < 0:
        parser.error("--pages and --n must be at least 1, --tokens at least 2, --rounds at least 0")
    if unknown := [stage for stage in args.stages if stage not in STAGES]:
        parser.error(f"--stages: {unknown[0]!r} is not one of {', '.join(STAGES)}")
    known = {name for stage, name in COMPRESSORS if stage in args.stages}
    if unknown := [name for name in args.methods or () if name not in known]:
        parser.error(f"--methods: {unknown[0]!r} is not one of {', '.join(sorted(known))}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes. Raises: ValueError on a regime or ratio that is none."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parsed(argv)
    host = load_host(args.model, args.dtype, args.device, args.learned)
    inputs = written(args.written, args.split, args.n, args.seed)
    shown = {regime: pages(regime, args.split, args.pages, args.seed) for regime in args.read}
    plans, refused = bench_plans(host, args.stages, args.ratios, args.methods, layouts(host, inputs))
    found = measured(host, [p for p in plans if p != BLIND], shown, inputs, args.rounds, args.tokens)
    page = markdown(found, header := about(args, argv, host))
    print(page, end="")
    for label, reason in refused.items():
        print(f"not run: {label}: {reason}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
        entries = header | {"plans": [each.entry() for each in found], "refused": refused}
        args.out.with_suffix(".json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

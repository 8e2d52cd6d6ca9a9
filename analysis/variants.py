"""Why some methods lose to `random` on the reference model: their own switches and their parts, each by itself.

A variant is a registered method with other hyperparameters, or with one of its parts left out: position ids kept as
they were instead of numbered anew, slots that hold their anchor alone instead of a mean, a ranking turned round. All
run on the inputs of `foveate bench`. Beside it stands what the scores see: the rank correlation of each with whether a
token lies on what the answer is read from (`Turn.at`), and how much of that still has a token of its own.

Run it as `python -m foveate.analysis.variants --out docs/bench/variants.md`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foveate.analysis.answer_places import SCORES, Asked, drawn, scored, stays
from foveate.analysis.bootstrap import Gain, mean_difference
from foveate.analysis.machine import in_words, machine
from foveate.analysis.switches import RIVALS, VARIANTS, Variant, registered
from foveate.models import load_host
from foveate.models.host import Host
from foveate.plans.plan import UNCOMPRESSED
from foveate.policies.export import library_versions
from foveate.rollouts.replay import fill

KEEPS = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Line:
    """A variant at a ratio.

    Attributes:
        variant, keep: which.
        stays: share of the answer's patches that are still a token's own place.
        accuracy: exact match.
        gain: above `random` with its places kept. anew: above `random` numbered anew.
    """

    variant: Variant
    keep: float
    stays: float
    accuracy: float
    gain: Gain
    anew: Gain


def measured(
    host: Host, asked: Sequence[Asked], keeps: Sequence[float], variants: Sequence[Variant] = VARIANTS, seed: int = 0
) -> list[Line]:
    """All variants at all ratios, paired with both kinds of `random`."""
    chosen = list({(each.stage, each.name): each for each in (*RIVALS, *variants)}.values())
    plans = [each.plan(keep) for keep in keeps for each in chosen]
    with registered(chosen), tempfile.TemporaryDirectory() as folder:
        table = fill(host, [each.input for each in asked], [UNCOMPRESSED, *plans], Path(folder) / "table.parquet")
        left = {plan: stays(host, asked, plan) for plan in plans}
    right, lines = {plan: table.correct[:, column].astype(float) for plan, column in table.column.items()}, []
    for keep in keeps:
        rivals = [right[each.plan(keep)] for each in RIVALS]
        for each in chosen:
            plan = each.plan(keep)
            gains = [mean_difference(right[plan] - rival, table, seed=seed) for rival in rivals]
            lines.append(Line(each, keep, left[plan], float(right[plan].mean()), *gains))
    return lines


def page(lines: Sequence[Line], seen: Sequence[float], header: Sequence[str]) -> str:
    """The Markdown page: what was measured on what, what scores see, a table for each ratio, and what is found."""
    out = ["# Why some methods lose to `random` on the reference model", "", *header, "", *findings(lines, seen), ""]
    out += ["## What scores see", "", "| method | score, on all tokens | rank correlation |", "| --- | --- | --- |"]
    out += [
        f"| {stage}:{name} | {said} | {value:+.2f} |"
        for (stage, name, said, _), value in zip(SCORES, seen, strict=True)
    ]
    for keep in dict.fromkeys(line.keep for line in lines):
        out += ["", f"## Keep {keep:g}", "", "| variant | answer stays | mean | against random | against random anew |"]
        out += ["| --- | --- | --- | --- | --- |"]
        for line in (each for each in lines if each.keep == keep):
            name = f"{line.variant.stage}:{line.variant.name}"
            gains = [f"{100 * g.value:+.1f} [{100 * g.low:+.1f}, {100 * g.high:+.1f}]" for g in (line.gain, line.anew)]
            out.append(f"| {name} | {line.stays:.2f} | {100 * line.accuracy:.1f} | {gains[0]} | {gains[1]} |")
    return "\n".join(out) + "\n"


def findings(lines: Sequence[Line], seen: Sequence[float]) -> list[str]:
    """One line for each method, at the ratio nearest to a half."""
    keep = min((line.keep for line in lines), key=lambda k: abs(k - 0.5))
    at = {line.variant.name: line for line in lines if line.keep == keep}
    said = {
        f"{name}{number}": f"{value:+.2f}"
        for number, ((_, name, *_), value) in enumerate(zip(SCORES, seen, strict=True))
    }
    out = [f"## Findings, keep {keep:g}", ""]
    for text in FINDINGS:
        out.append("* " + re.sub(r"\{(.+?)\}", lambda found: said.get(found[1]) or told(at, found[1]), text))
    return out


def told(at: Mapping[str, Line], name: str) -> str:
    """A variant's accuracy in percent; with " stays" behind its name the share of the answer that stays."""
    if name.endswith(" stays"):
        return f"{100 * at[name.removesuffix(' stays')].stays:.0f} %" if name.removesuffix(" stays") in at else "?"
    return f"{100 * at[name].accuracy:.1f}" if name in at else "?"


FINDINGS = (
    "**Places**: numbering anew alone takes `random` from {random} to {random (numbered anew)}, `hiprune` from "
    "{hiprune (places kept)} to {hiprune}, `tome` from {tome (places kept)} to {tome}: the reference decoder was "
    "trained on whole pictures alone and reads places off position ids. `random` keeps its places, the published "
    "methods number anew, so `random` numbered anew is what their choices are to be compared with.",
    "**ficoco** ({ficoco}): attention received from patches falls on objects and glyphs here (rank correlation "
    "{ficoco0}), it marks what matters as redundant; {ficoco stays} of the answer's patches stay. CLS looks at the "
    "same patches ({ficoco1}), so that the two terms pull against each other, and with the published share the first "
    "wins ({ficoco2}). By CLS alone: {ficoco (share=0)}; without merging and with places kept: "
    "{ficoco (share=0, unmerged, places kept)}; by received attention alone: {ficoco (share=1)}. Neither window "
    "nor merging nor places are the cause: without a window {ficoco (window=1)}, without the others "
    "{ficoco (unmerged, places kept)}.",
    "**chat_univi** ({chat_univi}): density is exp(-d^2), so its choice depends on how large features are, and this "
    "tower's are large, their mean square is about 40: objects have density 0, and centres are the ground (density "
    "{chat_univi6}, its product with the distance {chat_univi7}); {chat_univi stays} of the answer's patches are "
    "centres. On the same features at mean square 1 the product says the opposite ({chat_univi8}), "
    "{chat_univi (scaled) stays} stay, and accuracy is {chat_univi (scaled)}; with one level and places kept "
    "{chat_univi (scaled, one level, places kept)}. Without the scale: one level {chat_univi (one level)}, with places "
    "kept {chat_univi (one level, places kept)}. Two of three levels have no places by design.",
    "**par** ({par}): relevance says nothing of where the answer is ({par5}; the text tower was trained against CLS of "
    "the last block, not against patches), and clusters are filled or left out as wholes: {par stays} of the answer "
    "stays, as of `random`. Representatives alone: {par (route=drop)}; with places kept: {par (places kept)}. `random` "
    "numbered anew, which is as blind to the question: {random (numbered anew)}.",
    "**trim** ({trim}): the cosine with the question hardly tells where the answer is ({trim4}; below 0 the "
    "code's sign is the better one). {trim stays} of the answer's patches stay, with the other sign "
    "{trim (sign=1) stays}, which is right on {trim (sign=1)}; with places kept {trim (places kept)} and "
    "{trim (sign=1, places kept)}.",
    "**mustdrop** ({mustdrop}): windows that merge are the ground's ({mustdrop3}), as meant; with places kept "
    "{mustdrop (places kept)}, windows of two {mustdrop (side=2)}. At small ratios all windows must merge: at a ninth "
    "it is the mean of 3 x 3 patches behind one block of attention, below it of larger ones.",
)
"""What was read off a run with seed 0; the numbers are those of the run that writes the page."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(prog="python -m foveate.analysis.variants", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12, help="inputs of each regime (default: 12)")
    parser.add_argument("--keeps", default=",".join(map(str, KEEPS)), metavar="A,B", help="keep ratios")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and resamples (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Markdown page to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    host, asked = load_host("reference"), drawn(args.n, args.seed)
    seen = [scored(host, asked, stage, name, score) for stage, name, _, score in SCORES]
    lines = measured(host, asked, [float(keep) for keep in args.keeps.split(",")], seed=args.seed)
    command = ["python", "-m", "foveate.analysis.variants", *(sys.argv[1:] if argv is None else argv)]
    versions = in_words(library_versions(("torch", "transformers", "numpy")))
    header = [
        f"Made by `{shlex.join(command)}`; the inputs are those of `foveate bench`, {args.n} of each regime.",
        f"{machine()}, one thread; {versions}; seed {args.seed}; model {host.fingerprint[:12]}.",
        "Mean: exact match in percent, every regime alike. Differences are paired, with 95 % intervals by scene",
        "family: to `random`, which keeps its position ids, and to `random` numbered anew, as these methods are.",
        "Answer stays: share of the patches of the answer (`Turn.at`) that still are a token's place.",
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(lines, seen, header), encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

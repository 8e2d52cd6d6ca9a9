"""`foveate run --stream`: a long video window by window, with a memory of bounded size, see `models.streaming`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from foveate.plans.plan import UNCOMPRESSED, Choice, Plan, near

if TYPE_CHECKING:
    from foveate.compressors.base import Compressor
    from foveate.models.host import Host
    from foveate.serving.record import Record
    from foveate.tasks.clip import Clip

MEMORY, WINDOW = 64, 16
"""Frames: that the memory has room for, and that go through the model together, where nobody says."""

BEHIND = ("prefill", "decode")
"""Stages of a plan that can follow a stream."""

TYPES = {"int": (int, "a whole number"), "float": ((int, float), "a number"), "bool": (bool, "true or false")}


def stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares --stream and what goes with it."""
    parser.add_argument(
        "--stream",
        metavar="METHOD",
        help='the video window by window, however long it is: "moviechat", "dtd:tau=0.5", or with a share of its '
        'tokens "moviechat@0.125" or "video_xl@0.125"; a --plan of the stages prefill and decode may follow',
    )
    parser.add_argument(
        "--memory", type=int, metavar="N", help=f"with --stream: frames that it has room for (default: {MEMORY})"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        metavar="N",
        help=f"with --stream: frames in the model at a time (default: {WINDOW})",
    )


def check_stream(args: argparse.Namespace, plan: Plan | None) -> None:
    """Raises: ValueError where arguments do not go together."""
    if args.stream is None:
        if args.memory is not None or args.window != WINDOW:
            raise ValueError("--memory, --window: are for --stream")
        return
    if args.video is None or args.image:
        raise ValueError("--stream: needs --video FILE, and no --image")
    other = ("budget", "lam", "controller", "max_flops", "picture")
    if given := [f"--{name.replace('_', '-')}" for name in other if getattr(args, name) is not None]:
        raise ValueError(f"--stream: goes without {', '.join(given)}")
    for name, value in (("frames", args.frames), ("memory", args.memory), ("window", args.window)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}: {value} is below 1")
    for stage, choice in () if plan is None else plan.active:
        if stage not in BEHIND:
            raise ValueError(
                f"--stream: a plan behind it has the stages {' and '.join(BEHIND)}, not {stage}:{choice.method}"
            )


def read_stream(text: str, memory: int | None) -> tuple[Compressor, float | None, int | None]:
    """A method for streams from "name[:field=value,...][@keep]", the keep ratio, or the memory's frames.

    Raises:
        ValueError: no such method or field, a value of another kind, or two sizes.
    """
    from foveate.compressors.registry import COMPRESSORS

    head, at, keep = text.partition("@")
    name, _, given = head.strip().partition(":")
    known = {n: cls for (stage, n), cls in COMPRESSORS.items() if stage == "projector" and cls().streamed()}
    known |= {n: cls for (_, n), cls in COMPRESSORS.items() if cls.windowed}
    if name not in known:
        raise ValueError(f"--stream: {name!r} takes no video window by window; near: {near(name, sorted(known))}")
    made = known[name](**_values(name, given, {f.name: str(f.type) for f in fields(known[name]) if f.repr}))
    if not at and made.windowed:
        raise ValueError(f"--stream: {name} needs the share that stays, such as {name}@0.125; its memory grows")
    if not at:
        return made, None, memory or MEMORY
    if memory is not None:
        raise ValueError(f"--memory: {text!r} says by its keep ratio how much stays")
    try:
        return made, Choice(name, float(keep)).keep, None
    except ValueError:
        raise ValueError(f"--stream: {keep!r} is no keep ratio in (0, 1]") from None


def _values(name: str, given: str, known: dict[str, str]) -> dict[str, Any]:
    """ "field=value,..." as arguments. Raises: ValueError."""
    found: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        field, equals, text = (each.strip() for each in part.partition("="))
        if field not in known or not equals:
            raise ValueError(f"--stream: {name} has no {field!r}; it takes {', '.join(known)}")
        kind, *optional = known[field].split(" | ")
        types, called = TYPES[kind]
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        right = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
        if not right and not (value is None and optional):
            raise ValueError(f"--stream: {name}: {field} = {text!r} is not {called}")
        found[field] = value
    return found


def streamed(
    host: Host,
    plan: Plan,
    clips: Iterator[Clip],
    question: str,
    method: Compressor,
    keep: float | None,
    memory: int | None,
    frames: int,
    window: int,
    max_new_tokens: int,
) -> tuple[str, Record]:
    """Answer and record of a question about a video that comes by windows.

    Args:
        host: an opened model.
        plan: what acts in the decoder.
        clips: the video.
        question: text.
        method: of the stream.
        keep: share of the video's tokens, or None.
        memory: frames that it has room for, or None.
        frames: that will come.
        window: frames at a time.
        max_new_tokens: longest answer.
    Raises:
        ValueError: a method that this host cannot run, or a video that cannot be used.
    """
    from foveate.cli.text import waiting
    from foveate.models.streaming import check_behind, stage_of
    from foveate.serving.record import Record

    for stage, choice in plan.active:
        if (reason := host.supports(stage, choice.method, frames)) is not None:
            raise ValueError(f"plan, {stage}: {reason}")
        check_behind(stage, host.make(stage, choice.method))
    where = stage_of(method.name)
    if method.windowed and not plan[where].is_none:
        raise ValueError(f"plan, {where}: {plan[where].method} comes too late, {method.name} has run the decoder")
    if method.learned:
        if (reason := host.supports(where, method.name, frames)) is not None:
            raise ValueError(f"--stream: {reason}")
        method = replace(method, network=host.learned[where, method.name])
    with waiting(f"streaming {frames} frames"):
        p = host.stream(clips, question, method, keep, memory=memory, frames=frames, window=window)
    for stage in BEHIND:
        if stage not in p.done:
            p.run_stage(stage, [plan])
    answer = p.decode(max_new_tokens=max_new_tokens)[0]
    share = max(1e-4, round(p.counts[where][0] / p.whole.n_visual, 4))
    done = Plan.of(**{**dict(plan.active), where: Choice(method.name, share)})
    full = host.forecast(UNCOMPRESSED, p.whole, new_tokens=len(p.generated[0])).total
    return answer, Record(done, "stream", ledger=p.ledger[0], full=full, layers=tuple(p.counts["layers"][0]))

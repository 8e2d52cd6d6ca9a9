"""`foveate run`: a picture, several or a video, one question, one answer, and what it cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.reading import PLAN_HELP, check_runs, model_arguments, open_model, read_plan
from foveate.cli.streaming import check_stream, read_stream, stream_arguments, streamed
from foveate.cli.text import columns, flops
from foveate.plans.plan import STAGES, UNCOMPRESSED, Plan
from foveate.tasks.clip import FRAMES

if TYPE_CHECKING:
    import numpy as np

    from foveate.models.host import Host
    from foveate.serving.gate import Record
    from foveate.tasks.clip import Clip

EXAMPLE = 'foveate run --image photo.png --question "what color is the car?" --budget 0.3 --picture kept.png'


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="the picture; once for each of several"
    )
    parser.add_argument("--video", metavar="FILE", help="a video instead, or behind the pictures")
    parser.add_argument(
        "--frames", type=int, metavar="N", help=f"of it, at even distances (default: {FRAMES}; with --stream all)"
    )
    stream_arguments(parser)
    parser.add_argument("--question", required=True, metavar="TEXT", help="what to ask about it, or about all of them")
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--budget", type=float, metavar="SHARE", help="mean cost, as a share of the uncompressed FLOPs")
    dial.add_argument(
        "--lam", type=float, metavar="WEIGHT", help="what a whole uncompressed pass costs against an answer"
    )
    dial.add_argument("--plan", metavar="PLAN", help=f"no controller, this plan: {PLAN_HELP}")
    parser.add_argument(
        "--controller", metavar="FILE", help="an exported controller (default: the one of an embedded model)"
    )
    parser.add_argument("--max-flops", type=float, metavar="N", help="hard limit on this request")
    model_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (default: 16)")
    parser.add_argument("--picture", metavar="FILE", help="save what was shown with the kept tokens marked")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def main(args: argparse.Namespace) -> int:
    """Prints the answer and what it cost."""
    from foveate.controller.artefact import load

    if not args.question.strip():
        raise ValueError("question: is empty")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: {args.max_new_tokens} is below 1")
    if args.plan is not None and (args.controller is not None or args.max_flops is not None):
        raise ValueError("--plan: goes without --controller and --max-flops, it leaves nothing to decide")
    plan = None if args.plan is None else read_plan(args.plan)
    check_stream(args, plan)
    if args.stream is not None:
        found = by_stream(args, plan or UNCOMPRESSED)
        print(json.dumps(found, indent=2) if args.json else table(found))
        return 0
    images = shown_of(args.image, args.video, FRAMES if args.frames is None else args.frames)
    controller = None if plan is not None else controller_path(args.controller, args.model)
    if controller is not None:
        load(controller)  # a damaged file is told before the model is loaded
    host = open_model(args.model, args.dtype, args.device, args.learned)
    if plan is not None:
        answer, record = by_plan(host, plan, images, args.question, args.max_new_tokens)
    else:
        dials = {"budget": args.budget, "lam": args.lam, "max_flops": args.max_flops}
        answer, record = by_controller(host, controller, dials, images, args.question, args.max_new_tokens)
    found = report(answer, record)
    if args.picture is not None:
        draw(args.picture, host, images, args.question, record)
        found["picture"] = str(args.picture)
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def shown_of(images: Sequence[str], video: str | None, frames: int) -> list[np.ndarray | Clip]:
    """Pictures and the video of files. Raises: ValueError where there is none, or one that cannot be used."""
    from foveate.tasks.images import open_picture

    if not images and video is None:
        raise ValueError("give --image FILE or --video FILE")
    found: list[np.ndarray | Clip] = [open_picture(path) for path in images]
    if video is not None:
        if frames < 1:
            raise ValueError(f"--frames: {frames} is below 1")
        from foveate.tasks import video as videos  # the decoder is slow to import

        found.append(videos.frames(video, frames))
    return found


def controller_path(given: str | None, model: str) -> Path:
    """The controller to use. Raises: FileNotFoundError where none is given and none comes with the model."""
    if given is not None:
        return Path(given)
    from foveate.models.embedded import EMBEDDED

    if model in EMBEDDED and (shipped := EMBEDDED[model].parent / "controller.fov").is_file():
        return shipped
    advice = "train one (foveate demo, or foveate train and foveate export) and give --controller FILE, or give --plan"
    raise FileNotFoundError(f"no controller for model {model!r}: {advice}")


def by_controller(
    host: Host,
    controller: Path,
    dials: dict[str, float | None],
    images: Sequence[np.ndarray | Clip],
    question: str,
    max_new_tokens: int,
) -> tuple[str, Record]:
    """Answer and record of a question about pictures under a controller.

    Args:
        host: an opened model.
        controller: file.
        dials: budget, lam, max_flops; see `serving.gate.Gate`.
        images: (H, W, 3) uint8 each, or a video; one or more.
        question: text.
        max_new_tokens: longest answer.
    Raises:
        ValueError: a controller that does not fit, a dial out of range, or a question that cannot be put.
    """
    from foveate.serving.gate import Gate

    gate = Gate(host, None, controller, **dials)
    answer = gate.answer([list(images)], [question], max_new_tokens)[0]
    return answer, gate.last[0]


def by_stream(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """What came out of a video that goes through window by window. Raises: ValueError."""
    from foveate.tasks import video as videos

    method, keep, memory = read_stream(args.stream, args.memory)
    many, clips = videos.windows(args.video, args.frames, window=args.window)
    host = open_model(args.model, args.dtype, args.device, args.learned)
    answer, record = streamed(
        host, plan, clips, args.question, method, keep, memory, many, args.window, args.max_new_tokens
    )
    return report(answer, record)


def by_plan(
    host: Host, plan: Plan, images: Sequence[np.ndarray | Clip], question: str, max_new_tokens: int
) -> tuple[str, Record]:
    """The same under a fixed plan. Raises: ValueError where the model cannot run it."""
    from foveate.serving.gate import record_of

    p = host.open([list(images)], [question])
    check_runs(host, plan, p.shapes[0])
    answer = p.run(plan).decode(max_new_tokens=max_new_tokens)[0]
    return answer, record_of(p, 0, plan, "plan")


def report(answer: str, record: Record) -> dict[str, Any]:
    """What came out, as plain data."""
    ledger, layers = record.ledger, record.layers
    return {
        "answer": answer,
        "plan": record.plan.to_dict(),
        "label": record.plan.label(),
        "reason": record.reason,
        "decisions": [{"stage": s, "method": c.method, "keep": c.keep, "reason": r} for s, c, r in record.decisions],
        "tokens": dict(ledger.tokens),
        "tokens_mean_over_layers": sum(layers) / len(layers),
        "flops": {"by_stage": ledger.by_stage(), "total": ledger.total, "uncompressed": record.full},
        "share": record.share,
        "decision_share": record.decision_share,
        "decision_ms": 1000 * record.seconds,
        "kv_bytes": ledger.kv_bytes_end,
    }


def table(found: dict[str, Any]) -> str:
    """The report as text."""
    by_stage, full = found["flops"]["by_stage"], found["flops"]["uncompressed"]
    rows = []
    for stage in [*STAGES, *(s for s in by_stage if s not in STAGES)]:
        choice = found["plan"].get(stage)
        done = "-" if choice is None else "blind" if choice["method"] == "blind" else "{method}@{keep}".format(**choice)
        cost = by_stage.get(stage, 0)
        tokens = found["tokens"].get(stage, "-")
        rows.append((stage, done, tokens, flops(cost) if cost else "-", f"{100 * cost / full:.1f} %" if cost else "-"))
    total = found["flops"]["total"]
    rows.append(("total", "", "", flops(total), f"{100 * found['share']:.1f} %"))
    lines = [
        f"answer     {found['answer']}",
        f"plan       {found['label']}  (by {found['reason']})",
        f"cost       {100 * found['share']:.1f} % of the {flops(full)} of the uncompressed pass",
        f"decisions  {100 * found['decision_share']:.2f} % of it, {found['decision_ms']:.1f} ms",
        f"tokens     {found['tokens_mean_over_layers']:.1f} visual tokens, mean over the decoder's layers",
        "",
        columns(("stage", "method@keep", "tokens after", "FLOPs", "of uncompressed"), rows, right=(2, 3, 4)),
    ]
    if "picture" in found:
        lines += ["", f"kept tokens: {found['picture']}"]
    return "\n".join(lines)


def draw(path: str | Path, host: Host, shown: Sequence[np.ndarray | Clip], question: str, record: Record) -> None:
    """Marks the tokens that reach the last decoder layer on the pictures, one panel for each; on each frame of a video.

    Raises:
        ValueError: a suffix of no picture format, or a plan that leaves no token its place.
    """
    from foveate.serving.picture import row_picture, save_picture

    if record.kept is None:
        raise ValueError(f"--picture: {record.plan.label()} leaves the tokens of several views without places to draw")
    save_picture(path, row_picture(host, list(shown), question, record.plan, record.kept))

"""`foveate distill`: weights for a learned compressor, from the model itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.cli.data import TASKS
from foveate.cli.reading import model_arguments, open_model
from foveate.cli.text import columns

if TYPE_CHECKING:
    from foveate.models.distilling.judge import Figure
    from foveate.models.distilling.lessons import Lessons
    from foveate.models.distilling.recipe import Learn, Progress, Run

EXAMPLE = "foveate distill ldpv2 --model reference --data tasks --steps-a 200 --steps-b 400 --out runs/learned"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("method", metavar="METHOD", help="a learned method of `foveate list`, such as ldpv2")
    model_arguments(parser, learned=False)
    parser.add_argument(
        "--data",
        default="tasks",
        metavar="SOURCE",
        help="tasks = the built-in ones, some of them as tasks:scenes,reading, or your own FILE.jsonl (default: tasks)",
    )
    parser.add_argument("--images", metavar="FOLDER", help="folder that a file's image paths start from")
    parser.add_argument("--out", metavar="FOLDER", help="for the weights (default: where the model looks for them)")
    parser.add_argument(
        "--work", metavar="FOLDER", help="for the checkpoint and TensorBoard (default: runs/distill/METHOD)"
    )
    for name, about in (
        ("steps-a", "steps of the warm start on features"),
        ("steps-b", "steps of distillation through the decoder"),
        ("batch", "rows of a step"),
        ("seed", "of everything that is drawn"),
        ("held-out", "rows that judge the result"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=about)
    parser.add_argument("--rate", type=float, metavar="X", help="on the method's own learning rates (default: 1)")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="Ray actors that share each step's rows, on a GPU each where --device is cuda; 0 = this process (default)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the work folder")


def main(args: argparse.Namespace) -> int:
    """Trains, and prints how the result compares with pooling."""
    lessons = lessons_of(args.data, args.images)
    from foveate.models.distilling.recipe import Run
    from foveate.models.distilling.settings import settings_of

    settings = settings_of(
        steps_a=args.steps_a,
        steps_b=args.steps_b,
        batch=args.batch,
        seed=args.seed,
        held_out=args.held_out,
        rate=args.rate,
    )
    if args.workers < 0:
        raise ValueError(f"--workers: {args.workers} is below 0")
    host = open_model(args.model, args.dtype, args.device)
    work = Path(args.work or Path("runs/distill") / args.method.replace(":", "-"))
    run = Run(host, args.method, lessons, settings, work, args.resume)
    with watched(run, work) as watch, shared(run, args) as run.learn:
        run.train([watch])
    path, figures = run.finish(args.out)
    print(table(run.method.name, figures))
    print(f"\n{path}: {path.stat().st_size} bytes. TensorBoard: tensorboard --logdir {work}/tb")
    return 0


def lessons_of(data: str, images: str | None = None) -> Lessons:
    """What to train on. Raises: ValueError on an unknown task or a file that is not there or holds nothing."""
    from foveate.models.distilling.lessons import FileLessons, TaskLessons

    kind, colon, names = data.partition(":")
    if kind == "tasks":
        if images is not None:
            raise ValueError("--images: goes with a JSONL file, built-in tasks draw their own pictures")
        return TaskLessons([name.strip() for name in names.split(",") if name.strip()] if colon else TASKS)
    return FileLessons(data, images)


@contextmanager
def shared(run: Run, args: argparse.Namespace) -> Iterator[Learn]:
    """What gives the gradients of a step: this process, or workers that share its rows."""
    if not args.workers:
        yield run.learn
        return
    import torch

    from foveate.models import load_host
    from foveate.rollouts.distilling import Together
    from foveate.rollouts.ray_pool import RaySettings

    load = partial(load_host, args.model, args.dtype, args.device)
    on_gpus = float(args.device.startswith("cuda"))
    ray = RaySettings(args.workers, num_gpus=on_gpus, threads=torch.get_num_threads())
    crew = Together(load, args.method, run.lessons, run.settings, ray)
    try:
        yield crew.learn
    finally:
        crew.close()


@contextmanager
def watched(run: Run, work: Path) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr and TensorBoard scalars; the steps of both stages count on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from torch.utils.tensorboard import SummaryWriter

    from foveate.models.distilling.settings import PARTS

    before = {PARTS[0]: 0, PARTS[1]: run.steps(PARTS[0])}
    total, done = sum(run.steps(part) for part in PARTS), before[run.part] + run.step
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with (
        SummaryWriter(str(work / "tb"), purge_step=done) as board,
        Bar(*shown, TimeRemainingColumn(), console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task(run.part, total=total, completed=done, loss="")

        def watch(progress: Progress) -> None:
            at = before[progress.part] + progress.step
            for name, value in progress.losses.items():
                board.add_scalar(f"{progress.part}/{name}", value, at)
            board.add_scalar("train/learning_rate", progress.rate, at)
            board.add_scalar("train/keep", progress.keep, at)
            bar.update(task, completed=at, description=progress.part, loss=f"loss {progress.losses['loss']:.4f}")

        yield watch


def table(name: str, figures: Sequence[Figure]) -> str:
    """The figures of a method beside those of pooling, as text."""
    if not figures:
        return "held out: no row, nothing to judge by"
    head = ("keep", "tokens", f"KL {name}", "KL pooling", f"agrees {name}", "agrees pooling", "better", "pooling")
    rows = [
        (
            f"{f.keep:.3f}",
            f"{f.count:.1f}",
            f"{f.kl:.4f}",
            f"{f.pool_kl:.4f}",
            f"{100 * f.agreement:.1f} %",
            f"{100 * f.pool_agreement:.1f} %",
            "yes" if f.better else "no",
            f.pool,
        )
        for f in figures
    ]
    about = f"{figures[0].rows} held-out inputs: divergence from the uncompressed answers in nats, equal arg-maxima"
    return f"{about}\n\n{columns(head, rows, right=(0, 1, 2, 3, 4, 5))}"

"""`foveate demo`: the main job, small: replay tables, policy, controller, comparison on unseen inputs, and answers
through the gate."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.cli.text import columns

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.policies.train import Trained
    from foveate.rollouts.table import Table

EXAMPLE = "foveate demo --out runs/demo"
BUDGETS = (0.2, 0.35, 0.5)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--config", default="demo", help="a YAML file, or the name of a shipped one (default: demo)")
    parser.add_argument("--test", type=int, default=120, metavar="N", help="pictures that judge it (default: 120)")
    parser.add_argument("--asks", type=int, default=8, metavar="N", help="pictures answered at the end (default: 8)")
    parser.add_argument("--out", metavar="FOLDER", help="over the file's out")
    parser.add_argument("--model", help="over the file's model.name")
    parser.add_argument("--dtype", help="over the file's model.dtype")
    parser.add_argument("--device", help="over the file's model.device")
    parser.add_argument("--learned", metavar="FOLDER", help="over the file's model.learned")


def main(args: argparse.Namespace) -> int:
    """Runs everything and prints the comparison, the controller and some answers."""
    from foveate.analysis.report import Report
    from foveate.cli import data
    from foveate.cli.config import read_config
    from foveate.cli.reading import open_model
    from foveate.cli.training import RunConfig, run
    from foveate.plans.files import find_config
    from foveate.rollouts.replay import fill
    from foveate.rollouts.table import Table

    began = time.monotonic()
    if args.test < 1 or args.asks < 0:
        raise ValueError(f"--test {args.test} must be 1 or more, --asks {args.asks} 0 or more")
    flags = {"out": args.out, "model.name": args.model, "model.learned": args.learned}
    flags |= {"model.dtype": args.dtype, "model.device": args.device}
    config = read_config(RunConfig, find_config(".", args.config), flags)
    out = Path(config.out)
    trained = run(config, resume=(out / "checkpoint.pt").exists())
    host = open_model(config.model.name, config.model.dtype, config.model.device, config.model.learned)
    train = Table.load(out / "train.parquet")
    samples = data.samples(config.data.tasks, "test", args.test, config.seed)
    test = fill(host, samples, train.plans, out / "test.parquet", workers=config.rollouts.workers)
    chooser = trained.policy if trained.winner == "policy" else trained.one_shot
    calibration = trained.artefacts[trained.winner].calibration
    report = Report.of(train, test, chooser, calibration, budgets=BUDGETS)
    report.write(out / "report")
    print(report.text())
    print(controller_line(out, trained))
    print(answers(host, out / "controller.fov", test, args.asks, out / "tb"))
    print(f"\n{out}/report: table, pictures. TensorBoard: tensorboard --logdir {out}/tb")
    print(
        f"{(time.monotonic() - began) / 60:.1f} minutes, {peak_memory() / 2**30:.1f} GiB at the most", file=sys.stderr
    )
    return 0


def controller_line(out: Path, trained: Trained) -> str:
    """Where the controller is, how large, and which of the two candidates won on the validation inputs."""
    path = out / "controller.fov"
    scores = ", ".join(f"{name} {trained.scores[name]:.4f}" for name in sorted(trained.scores, key=trained.scores.get))
    return f"controller: {path}, {path.stat().st_size} bytes, {trained.winner}\nmean reward in validation: {scores}\n"


def answers(host: Host, controller: Path, test: Table, count: int, board: Path) -> str:
    """Some test inputs answered by the gate, one regime after the other: what was asked, said, right, and by which
    plan; what was kept of each goes to a folder of TensorBoard."""
    from foveate.analysis.panels import write_panels
    from foveate.cli.data import regime_inputs
    from foveate.serving.gate import Gate
    from foveate.tasks.base import exact_match

    gate = Gate(host, None, controller)
    rows, answered = [], []
    for asked in regime_inputs(sorted(set(test.regimes.tolist())), "test", count):
        said = gate.answer([asked.image], [asked.question])[0]
        record = gate.last[0]
        answered.append((asked, record))
        right = "yes" if exact_match(said, asked.answers) else f"no: {asked.answers[0]}"
        rows.append((asked.regime, asked.question, said, right, record.plan.label(), f"{100 * record.share:.0f} %"))
    write_panels(board, host, answered)
    return columns(("regime", "question", "answer", "right", "plan", "FLOPs"), rows, right=(5,))


def peak_memory() -> int:
    """Bytes of the largest resident set of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

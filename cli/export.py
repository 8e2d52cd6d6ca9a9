"""`foveate export`: a trained policy as one controller file, set to a default budget."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

EXAMPLE = "foveate export runs/mine --out policy.fov --budget 0.35"
KINDS = ("controller", "policy", "one_shot")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a finished training")
    parser.add_argument("--kind", choices=KINDS, default="controller", help="which of its policies (default: the best)")
    parser.add_argument("--budget", type=float, metavar="SHARE", help="default mean cost (default: as trained)")
    parser.add_argument("--out", required=True, metavar="FILE", help="controller file to write")


def main(args: argparse.Namespace) -> int:
    """Writes the file and prints what it is."""
    digest = export_run(args.run, args.out, args.kind, args.budget)
    print(f"{args.out}: {Path(args.out).stat().st_size} bytes, SHA-256 {digest}")
    return 0


def export_run(run: str | Path, out: str | Path, kind: str = "controller", budget: float | None = None) -> str:
    """Writes the controller of a finished training.

    Args:
        run: the training's folder.
        out: file to write.
        kind: "policy", "one_shot", or "controller": the better of the two on the validation inputs.
        budget: mean cost share that it is set to when nobody asks for another; None = as trained.
    Returns:
        The file's SHA-256.
    Raises:
        FileNotFoundError: the training has not finished, or is not there.
        ControllerError: its file is damaged.
        ValueError: a budget below the lowest calibrated cost.
    """
    from foveate.controller import load
    from foveate.controller.dial import lambda_for
    from foveate.policies.export import export

    source = Path(run) / f"{kind}.fov"
    if not source.is_file():
        state = "has not finished: go on with foveate train --resume" if Path(run).is_dir() else "is not there"
        raise FileNotFoundError(f"{source}: no such file; the training {state}")
    artefact = load(source)
    if budget is not None:
        artefact = replace(artefact, lam=lambda_for(artefact.calibration, budget))
    return export(out, artefact)

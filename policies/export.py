"""From a trained policy to the one file that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foveate.controller import Artefact, Network, save
from foveate.controller.dial import lambda_for
from foveate.plans.plan import Choice
from foveate.plans.portfolio import ActionTable, Portfolio
from foveate.policies.standard import Standard
from foveate.rollouts.table import Table

LIBRARIES = ("numpy", "torch", "stable-baselines3", "gymnasium", "scikit-learn")


def portfolio_of(table: Table) -> Portfolio:
    """The portfolio that a table was filled for, narrowed to one active stage, which is all that a table answers.

    Where the meta names none, everything that the table's one-stage plans do.
    """
    if "portfolio" in table.meta:
        return replace(Portfolio.from_dict(table.meta["portfolio"]), max_active_stages=1)
    choices: dict[str, list[Choice]] = {}
    for plan in table.plans:
        for stage, choice in plan.active if len(plan.active) == 1 else ():
            choices.setdefault(stage, []).append(choice)
    return Portfolio("table", {stage: tuple(some) for stage, some in choices.items()}, max_active_stages=1)


def artefact_of(
    network: Network,
    standard: Standard,
    table: Table,
    calibration: Sequence[tuple[float, float]],
    budget: float = 0.35,
    provenance: Mapping[str, Any] | None = None,
) -> Artefact:
    """A controller as data, checked.

    Args:
        network: "policy" (rows are methods) or "regression" (rows are the table's plans, decided at once at the start).
        standard: standardisation that the network was folded for.
        table: gives host, fingerprint, portfolio and plans.
        calibration: (lambda, mean cost share) by rising lambda, measured on held-out inputs.
        budget: mean cost share that the default lambda is set for; what the largest lambda costs where that is more.
        provenance: plain data for the reader; seed and library versions are added.

    Raises:
        ValueError: the parts do not fit each other, or nothing is calibrated.
    """
    if not calibration:
        raise ValueError("export: nothing is calibrated, so no budget could be asked for")
    portfolio = portfolio_of(table)
    plans = {"plans": [plan.to_dict() for plan in table.plans]}
    artefact = Artefact(
        layout=standard.layout,
        normalisation=standard.normalisation,
        network=network,
        actions=ActionTable.from_portfolio(portfolio).to_dict() if network.kind == "policy" else plans,
        portfolio=portfolio.to_dict(),
        host=str(table.meta.get("host", "")),
        fingerprint=str(table.meta.get("fingerprint", "")),
        lam=lambda_for(calibration, max(budget, calibration[-1][1])),
        calibration=tuple((float(lam), float(cost)) for lam, cost in calibration),
        provenance={**(provenance or {}), "libraries": library_versions()},
    )
    artefact.check()
    return artefact


def export(path: str | Path, artefact: Artefact) -> str:
    """Writes the controller, and its ONNX graph beside it where the `onnx` package is there.

    Returns:
        The controller file's SHA-256.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        from foveate.controller.onnx import write_onnx

        digest = write_onnx(path.with_suffix(".onnx"), artefact.network)
    except ImportError:
        digest = ""
    return save(path, replace(artefact, onnx_sha256=digest))


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions of libraries, without those that are not there; by default what training depends on."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

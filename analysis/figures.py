"""Pictures of fronts and of what a policy chose. matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from foveate.analysis.curves import Fronts
from foveate.policies.evaluate import Outcome
from foveate.policies.hull import Line
from foveate.policies.rivals import fixed_points
from foveate.rollouts.table import Table


def pareto(table: Table, fronts: Fronts | None, lines: Mapping[str, Line]) -> Figure:
    """Accuracy against cost: every fixed plan, the hull, the regime line, the oracle, and named lines on top.

    Args:
        table: the inputs that everything is measured on.
        fronts: None = the fixed plans and the named lines alone.
        lines: name -> line; drawn in the order given.
    """
    figure, axes = _figure(7, 5)
    cost, accuracy = fixed_points(table)
    axes.scatter(100 * cost, 100 * accuracy, s=14, color="0.6", label="fixed plans", zorder=1)
    if fronts is not None:
        for name, line, style in (
            ("hull of fixed plans", fronts.hull, "k-"),
            ("regime line", fronts.regime, "k--"),
            ("naive oracle", fronts.oracle, "k:"),
        ):
            axes.plot(100 * line.cost, 100 * line.accuracy, style, lw=1.2, label=name, zorder=2)
    for name, line in lines.items():
        axes.plot(100 * line.cost, 100 * line.accuracy, "o-", ms=3, lw=1.4, label=name, zorder=3)
    axes.set_xlabel("cost, % of the uncompressed FLOPs")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{table.n} inputs, {table.p} plans", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def cost_against_lambda(outcomes: Sequence[Outcome], rivals: Mapping[str, Sequence[Outcome]] | None = None) -> Figure:
    """Mean cost and accuracy over lambda: the first has to fall."""
    figure, axes = _figure(7, 4)
    for name, some in {outcomes[0].name: outcomes, **(rivals or {})}.items():
        lams = [outcome.lam for outcome in some]
        drawn = axes.plot(lams, [100 * o.cost for o in some], "-", label=f"{name}: cost")
        axes.plot(lams, [100 * o.accuracy for o in some], "--", color=drawn[0].get_color(), label=f"{name}: accuracy")
    axes.set_xscale("log")
    axes.set_xlabel("lambda, accuracy per share of the uncompressed FLOPs")
    axes.set_ylabel("%")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def choice_map(shares: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Heat map of what is chosen: regimes down, methods across, share of a regime's inputs."""
    columns = sorted({name for row in shares.values() for name in row}, key=lambda n: (n == "none", n == "blind", n))
    values = np.array([[row.get(name, 0.0) for name in columns] for row in shares.values()])
    figure, axes = _figure(2.5 + 0.55 * len(columns), 1.8 + 0.3 * len(shares))
    image = axes.imshow(100 * values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(shares)), list(shares), fontsize=7)
    for i, j in np.argwhere(values >= 0.01):
        dark = values[i, j] > 0.5
        axes.text(j, i, f"{100 * values[i, j]:.0f}", ha="center", va="center", fontsize=6, color="w" if dark else "k")
    axes.set_title(title or "share of inputs, %", fontsize=8)
    figure.colorbar(image, ax=axes)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG that is the same for the same content: no version or date in it."""
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _figure(width: float, height: float) -> tuple[Figure, object]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()

"""Pictures of fronts and of what a policy chose. matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from foveate.analysis.bench import Row
from foveate.analysis.curves import Fronts
from foveate.plans.plan import STAGES, UNCOMPRESSED
from foveate.policies.evaluate import Outcome
from foveate.policies.hull import Line, hull_line
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


def stage_panels(rows: Sequence[Row], title: str) -> Figure:
    """Accuracy over FLOPs: a panel for each stage with a line for each of its methods, the names beside it; behind them
    the hull of all plans."""
    stages = [stage for stage in STAGES if any(_acts(row, stage) for row in rows)] or [STAGES[0]]
    hull = hull_line(np.array([row.cost for row in rows]), np.array([row.accuracy for row in rows]))
    figure = _empty(10, 0.6 + 3.2 * len(stages))
    panels = figure.subplots(len(stages), sharex=True, squeeze=False)[:, 0]
    for axes, stage in zip(panels, stages, strict=True):
        axes.plot(hull.cost, 100 * hull.accuracy, color="0.8", linewidth=5, label="hull of all plans", zorder=0)
        series: dict[str, list[Row]] = {}
        for row in rows:
            if row.plan == UNCOMPRESSED:
                axes.plot(row.cost, 100 * row.accuracy, "k*", markersize=9, label="uncompressed")
            elif _acts(row, stage):
                series.setdefault(row.plan[stage].method, []).append(row)
        for number, (name, group) in enumerate(sorted(series.items())):
            group.sort(key=lambda row: row.cost)
            line, mark = ("-", "--", ":")[number // 10 % 3], "osv^Dx"[number // 10 % 6]
            style = {"linestyle": line, "marker": mark, "color": f"C{number % 10}", "markersize": 4}
            axes.plot([r.cost for r in group], [100 * r.accuracy for r in group], label=name, **style)
        axes.set(ylabel="exact match, %", ylim=(0, 103))
        axes.set_title(stage, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        names = {"fontsize": 7, "ncols": 1 + len(series) // 17, "frameon": False}
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), **names)
    panels[-1].set_xlabel("FLOPs, share of uncompressed")
    figure.suptitle(f"{title}, every regime alike")
    return figure


def _acts(row: Row, stage: str) -> bool:
    """Whether a row's plan does something at a stage."""
    return not row.plan[stage].is_none


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG that is the same for the same content: no version or date in it."""
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _figure(width: float, height: float) -> tuple[Figure, object]:
    figure = _empty(width, height)
    return figure, figure.subplots()


def _empty(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

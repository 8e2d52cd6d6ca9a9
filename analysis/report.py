"""The final table: one policy against everything else at equal cost, as text, CSV and pictures.

At each budget the policy runs at the lambda that its calibration gives for it, so the test inputs choose nothing. What
it then costs on the test inputs is the cost at which every rival is read off its line.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.analysis.bootstrap import Gain, gain_over_hull, gain_over_line
from foveate.analysis.curves import (
    Fronts,
    area_above_hull,
    flops_saved,
    gap_closed,
    gap_closed_at,
    line_lambdas,
    reach_down,
)
from foveate.analysis.figures import choice_map, cost_against_lambda, pareto, save
from foveate.analysis.permutation import Permuted, permute
from foveate.controller.dial import Calibration, lambda_for
from foveate.policies.evaluate import Chooser, Outcome, by_regime, evaluate, front, shares
from foveate.policies.hull import Line
from foveate.policies.rivals import RegimeLine, fixed_points
from foveate.rollouts.table import Table

BUDGETS = (0.2, 0.35, 0.5)
ALWAYS = ("uncompressed", "best fixed plan", "regime line", "naive oracle")
"""Rivals that the report measures itself."""


@dataclass(frozen=True)
class AtBudget:
    """Everything at one budget.

    Attributes:
        budget: mean cost share asked for.
        outcome: of the policy, at the calibrated lambda.
        best_fixed: label, cost and accuracy of the fixed plan that was most accurate in training within this cost.
        over_hull: accuracy above the hull of the test inputs' own fixed plans, with its interval.
        over_regime: above the regime line.
        permuted: the permutation test.
        saved: FLOPs saved against the hull at equal accuracy.
        closed: share of the gap between hull and naive oracle, at this cost.
        rivals: name -> accuracy of that rival's line at this cost; below its reach, mixed with the cheapest fixed plan.
    """

    budget: float
    outcome: Outcome
    best_fixed: tuple[str, float, float]
    over_hull: Gain
    over_regime: Gain
    permuted: Permuted
    saved: float
    closed: float
    rivals: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The comparison on one test table.

    Attributes:
        table: the test inputs.
        fronts: hull, regime line, oracle.
        outcomes: of the policy over all lambdas. lines: name -> line of every further rival, and of the policy last.
        columns: one per budget.
        area, closed: area above the hull, and its share of the oracle's.
    """

    table: Table
    fronts: Fronts
    outcomes: Sequence[Outcome]
    lines: Mapping[str, Line]
    columns: Sequence[AtBudget]
    area: float
    closed: float

    @classmethod
    def of(
        cls,
        train: Table,
        test: Table,
        policy: Chooser,
        calibration: Calibration,
        rivals: Sequence[Chooser] = (),
        budgets: Sequence[float] = BUDGETS,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Report:
        """Measures everything.

        Args:
            train: where rivals choose.
            test: where everything is measured.
            policy: what is judged.
            calibration: its (lambda, mean cost share), from held-out inputs that are not the test's.
            rivals: further choosers; hull, regime line and oracle are always there.
            budgets: mean cost shares; one below the calibrated range is read at its cheapest end.
            resamples: of the bootstrap.
            seed: of the resamples.

        Raises:
            ValueError: no calibration, or families that train and test share.
        """
        shared = set(train.families.tolist()) & set(test.families.tolist())
        if shared:
            raise ValueError(f"report: train and test share {len(shared)} scene families, such as {min(shared)!r}")
        fronts = Fronts.of(train, test)
        lams = [lam for lam, _ in calibration]
        outcomes = evaluate(policy, test, lams)
        further = {rival.name: front(evaluate(rival, test, lams)) for rival in rivals if rival.name not in ALWAYS}
        lines = further | {policy.name: front(outcomes)}
        regime = evaluate(RegimeLine(train), test, line_lambdas(train))
        columns = []
        for budget in budgets:
            lam = lambda_for(calibration, max(budget, calibration[-1][1]))
            outcome = evaluate(policy, test, [lam])[0]
            columns.append(
                AtBudget(
                    budget,
                    outcome,
                    _best_fixed(train, test, outcome.cost),
                    gain_over_hull(outcome, test, resamples, seed),
                    gain_over_line(outcome, regime, test, resamples, seed),
                    permute(outcome, test, resamples, seed),
                    flops_saved(outcome, fronts.hull),
                    gap_closed_at(outcome, fronts.hull, fronts.oracle),
                    {name: reach_down(line, fronts.hull).at(outcome.cost) for name, line in further.items()},
                )
            )
        whole = lines[policy.name]
        area = area_above_hull(whole, fronts.hull)
        return cls(test, fronts, outcomes, lines, columns, area, gap_closed(whole, fronts.hull, fronts.oracle))

    def rows(self) -> list[tuple[str, list[tuple[float, float]]]]:
        """(name, (cost, accuracy) at each budget) of the table's rows, shares."""
        cost, accuracy = fixed_points(self.table)
        at = [column.outcome.cost for column in self.columns]
        rows = [
            ("uncompressed", [(cost[0], accuracy[0])] * len(at)),
            ("best fixed plan", [column.best_fixed[1:] for column in self.columns]),
            ("hull of fixed plans", [(c, self.fronts.hull.at(c)) for c in at]),
            ("hull chosen in training", [(c, self.fronts.train_hull.at(c)) for c in at]),
            ("regime line", [(c, self.fronts.regime.at(c)) for c in at]),
        ]
        names = list(self.lines)[:-1]
        rows += [(name, [(c.outcome.cost, c.rivals[name]) for c in self.columns]) for name in names]
        rows.append(("permuted policy", [(c.permuted.outcome.cost, c.permuted.outcome.accuracy) for c in self.columns]))
        rows.append((self.outcomes[0].name, [(c.outcome.cost, c.outcome.accuracy) for c in self.columns]))
        rows.append(("naive oracle", [(c, self.fronts.oracle.at(c)) for c in at]))
        return rows

    def text(self) -> str:
        """The table and one line per regime, for a terminal."""
        table = self.table
        out = [f"{table.n} test inputs of {len(set(table.families.tolist()))} scene families, {table.p} plans.", ""]
        out.append(f"{'accuracy % (cost %)':<26}" + "".join(f"{f'budget {c.budget:g}':>18}" for c in self.columns))
        for name, points in self.rows():
            out.append(f"{name:<26}" + "".join(f"{f'{100 * a:.1f} ({100 * c:.1f})':>18}" for c, a in points))
        out.append("")
        for c in self.columns:
            out.append(f"budget {c.budget:g}: lambda {c.outcome.lam:.3g}, best fixed plan {c.best_fixed[0]}")
            out.append(f"  over the hull        {c.over_hull}")
            out.append(f"  over the regime line {c.over_regime}")
            out.append(f"  lost when permuted   {c.permuted.drop}; in reward {c.permuted.reward_drop}")
            out.append(f"  FLOPs saved at equal accuracy {_percent(c.saved)}")
            out.append(f"  hull-to-oracle gap closed {_percent(c.closed)}")
        out.append(f"over all budgets: area above the hull {self.area:.4f}, gap closed {_percent(self.closed)}")
        for c in self.columns:
            out += ["", f"chosen at budget {c.budget:g}:", *self.regime_lines(c)]
        return "\n".join(out) + "\n"

    def regime_lines(self, column: AtBudget, most: int = 4) -> list[str]:
        """One line per regime: accuracy, cost, and the plans chosen most often."""
        chosen, measured = shares(column.outcome, self.table, whole_plan=True), by_regime(column.outcome, self.table)
        width = max(len(regime) for regime in chosen)
        lines = []
        for regime, row in chosen.items():
            cost, accuracy = measured[regime]
            plans = ", ".join(f"{plan} {100 * share:.0f} %" for plan, share in list(row.items())[:most])
            measured_as = f"{100 * accuracy:5.1f} % right at {100 * cost:4.1f} % of the FLOPs"
            lines.append(f"  {regime:<{width}}  {measured_as}: {plans}")
        return lines

    def write(self, folder: str | Path) -> None:
        """report.txt, table.csv, fronts.csv, choices.csv, pareto.png, cost_against_lambda.png, choices_<budget>.png."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.txt").write_text(self.text(), "utf-8")
        rows = [(n, c.budget, *p) for n, points in self.rows() for c, p in zip(self.columns, points, strict=True)]
        _csv(folder / "table.csv", ("name", "budget", "cost_share", "accuracy"), rows)
        named = {"hull": self.fronts.hull, "train_hull": self.fronts.train_hull, "regime_line": self.fronts.regime}
        named |= {"naive_oracle": self.fronts.oracle, **self.lines}
        points = [(n, *p) for n, line in named.items() for p in zip(line.cost, line.accuracy, strict=True)]
        _csv(folder / "fronts.csv", ("name", "cost_share", "accuracy"), points)
        chosen = []
        for column in self.columns:
            for regime, row in shares(column.outcome, self.table, whole_plan=True).items():
                chosen += [(column.budget, regime, plan, share) for plan, share in row.items()]
            picture = choice_map(shares(column.outcome, self.table), f"share of inputs, %, budget {column.budget:g}")
            save(picture, folder / f"choices_{column.budget:g}.png")
        _csv(folder / "choices.csv", ("budget", "regime", "plan", "share"), chosen)
        drawn = {name: line for name, line in self.lines.items() if len(line.cost) > 1}
        save(pareto(self.table, self.fronts, drawn), folder / "pareto.png")
        save(cost_against_lambda(self.outcomes), folder / "cost_against_lambda.png")


def _best_fixed(train: Table, test: Table, cost: float) -> tuple[str, float, float]:
    """The plan most accurate in training among those that cost no more there; the cheapest where none does."""
    (costs, accuracies), (test_costs, test_accuracies) = fixed_points(train), fixed_points(test)
    within = np.where(costs <= cost + 1e-9, accuracies, -np.inf)
    plan = int(within.argmax()) if np.isfinite(within).any() else int(costs.argmin())
    return test.plans[plan].label(), float(test_costs[plan]), float(test_accuracies[plan])


def _percent(value: float) -> str:
    return "none to close" if np.isnan(value) else f"{100 * value:.1f} %"


def _csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)

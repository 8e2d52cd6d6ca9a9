"""The TensorBoard of a training: what the policy gives, and what it chooses, on the validation table.

| key | unit | meaning |
|---|---|---|
| validation/score | quality | mean over lambdas of (accuracy - lambda * cost) / (1 + lambda) |
| validation/area_above_hull | share^2 | area between the policy's line and the hull of fixed plans of this table |
| validation/gap_closed | share | that area / the one of the naive oracle |
| validation/lambda_inversions | count | neighbouring lambdas at which the larger one costs more: 0 is monotone |
| cost/L, accuracy/L | share | mean cost share and accuracy at lambda = L |
| regime/R/accuracy, regime/R/cost | share | at the middle lambda |
| method/S:M | share | inputs for which method M at stage S is chosen, at the middle lambda |
| method_in/R/S:M | share | the same within regime R |
| kept/p10, kept/p50, kept/p90 | share | visual tokens in the decoder, mean over layers / uncompressed |
| pareto, cost_against_lambda, choices | figure | |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from foveate.analysis.curves import Fronts, area_above_hull, gap_closed
from foveate.analysis.figures import choice_map, cost_against_lambda, pareto
from foveate.policies.evaluate import by_regime, front, shares
from foveate.policies.train import Progress
from foveate.rollouts.table import Table


class Board:
    """Writes every evaluation of a training; give it to `train(..., watch=[board])`.

    Args:
        folder: of the event files; the training's own are in `out`/tb.
        train: where the regime line chooses its plans.
        figures_every: evaluations between figures; the last one always gets them.
    """

    def __init__(self, folder: str | Path, train: Table, figures_every: int = 4) -> None:
        self.writer = SummaryWriter(str(folder))
        self._train, self._every, self._seen = train, figures_every, 0
        self._fronts: tuple[Table, Fronts] | None = None
        self._known_methods: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        """One evaluation."""
        table, outcomes, step = progress.table, progress.outcomes, progress.update
        fronts, line = self._fronts_of(table), front(outcomes)
        middle = outcomes[len(outcomes) // 2]
        values = {
            "validation/score": progress.score,
            "validation/area_above_hull": area_above_hull(line, fronts.hull),
            "validation/gap_closed": gap_closed(line, fronts.hull, fronts.oracle),
            "validation/lambda_inversions": float(np.sum(np.diff([o.cost for o in outcomes]) > 1e-9)),
        }
        for outcome in outcomes:
            values |= {f"cost/{outcome.lam:.3g}": outcome.cost, f"accuracy/{outcome.lam:.3g}": outcome.accuracy}
        for regime, (cost, accuracy) in by_regime(middle, table).items():
            values |= {f"regime/{regime}/cost": cost, f"regime/{regime}/accuracy": accuracy}
        chosen = shares(middle, table)
        values |= self._methods(chosen, table)
        kept = table.tokens[np.arange(table.n), middle.plan] / np.maximum(table.tokens[:, 0], 1e-9)
        values |= {f"kept/p{q}": float(np.quantile(kept, q / 100)) for q in (10, 50, 90)}
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self._seen % self._every == 0 or step >= progress.updates:
            lines = {"policy": line}
            self.writer.add_figure("pareto", pareto(table, fronts, lines), step)
            self.writer.add_figure("cost_against_lambda", cost_against_lambda(outcomes), step)
            title = f"share of inputs, %, at lambda {middle.lam:.3g}"
            self.writer.add_figure("choices", choice_map(chosen, title), step)
        if self._seen == 0:
            self.writer.add_custom_scalars(_layout([f"{o.lam:.3g}" for o in outcomes], list(chosen)))
        self._seen += 1
        self.writer.flush()

    def finish(self, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Writes the hyperparameters beside the final numbers, and closes the files."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hparams.items()}
        self.writer.add_hparams(plain, {f"final/{k}": float(v) for k, v in metrics.items()}, run_name=".")
        self.writer.close()

    def _fronts_of(self, table: Table) -> Fronts:
        if self._fronts is None or self._fronts[0] is not table:
            self._fronts = table, Fronts.of(self._train, table)
        return self._fronts[1]

    def _methods(self, chosen: Mapping[str, Mapping[str, float]], table: Table) -> dict[str, float]:
        """Shares over all inputs and by regime. What was chosen once is written ever after, at 0 if need be."""
        self._known_methods |= {name for row in chosen.values() for name in row}
        weight = {regime: float(np.mean(table.regimes == regime)) for regime in chosen}
        out = {}
        for name in sorted(self._known_methods):
            out[f"method/{name}"] = sum(weight[regime] * row.get(name, 0.0) for regime, row in chosen.items())
            out |= {f"method_in/{regime}/{name}": row.get(name, 0.0) for regime, row in chosen.items()}
        return out


def _layout(lams: list[str], regimes: list[str]) -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars page."""
    return {
        "outcome": {
            "accuracy by lambda": ["Multiline", [f"accuracy/{lam}" for lam in lams]],
            "cost by lambda": ["Multiline", [f"cost/{lam}" for lam in lams]],
            "above the hull": ["Multiline", ["validation/area_above_hull", "validation/gap_closed"]],
        },
        "decision": {
            "methods": ["Multiline", [r"^method/.*"]],
            "kept tokens": ["Margin", ["kept/p50", "kept/p10", "kept/p90"]],
            "entropy": ["Multiline", ["train/entropy"]],
        },
        "regimes": {
            "accuracy": ["Multiline", [f"regime/{regime}/accuracy" for regime in regimes]],
            "cost": ["Multiline", [f"regime/{regime}/cost" for regime in regimes]],
        },
    }

"""Legal actions on a real host: what it can do, which counts can be reached, and an exact hard budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foveate.compressors.registry import COMPRESSORS
from foveate.plans.masks import Rules, cheapest, legal_mask, refusal
from foveate.plans.plan import STAGES, UNCOMPRESSED, Choice, Plan
from foveate.plans.portfolio import ActionTable

if TYPE_CHECKING:
    from foveate.models.llava import LlavaHost

STOP_GROUP = {"encoder": "block1", "outside": "encoder", "prefill": "layer1"}
"""Stop -> the token features that are computed there when a decision is due."""

ANSWER_TOKENS = 4
"""Length of the answer that costs count, its end token included.

It is the same for every plan, so that none gains by a short answer.
"""


def features_total(groups: Collection[str], cost: Mapping[str, float]) -> float:
    """FLOPs of some groups' features."""
    return sum(cost.get(group, 0.0) for group in groups)


def feature_flops(host: LlavaHost, n_text: int) -> dict[str, float]:
    """Group -> FLOPs of its features on an uncompressed row."""
    from foveate.models import features  # needs torch, which masks alone do not

    return dict(features.feature_flops(host, n_text))


FeatureCost = Mapping[str, float] | Callable[[int], Mapping[str, float]]
"""Group -> FLOPs of its features, or a function of the prompt entries that are text."""


class Forecaster(Protocol):
    """The part of a host that masks need."""

    def supports(self, stage: str, name: str) -> str | None:
        """See `foveate.models.host.Host`."""

    def forecast(self, plan: Plan, n_text: int, new_tokens: int = 0, turns: int = 1) -> Any:
        """See `foveate.models.host.Host`."""


class Masks:
    """Masks of one host and one action table, with what they need remembered between episodes.

    The price of a plan is the host's forecast (adaptive methods at their ceiling), the answer's tokens included, plus
    the features of each stop at which the portfolio leaves a choice, budget apart. A budget is kept by this price,
    which no real pass exceeds.

    Args:
        host: the model.
        table: actions on offer.
        answer_tokens: length of the answer that is counted, its end token included; 0 counts the prompt alone.
        feature_cost: prompt entries that are text -> FLOPs of each group's features; a mapping where that does not
            depend on the length, None = free.
    Raises:
        ValueError: nothing that the table offers can run on this host.
    """

    def __init__(
        self,
        host: Forecaster,
        table: ActionTable,
        answer_tokens: int = ANSWER_TOKENS,
        feature_cost: FeatureCost | None = None,
    ) -> None:
        self.host, self.table, self.answer_tokens = host, table, answer_tokens
        self.feature_cost = feature_cost
        known = [key for key in table.methods[1:] if key in COMPRESSORS]
        self.rules = Rules(
            supports=host.supports,
            reachable=self._unreachable,
            requires_grid={key for key in known if COMPRESSORS[key].requires_grid},
            emits_grid={key for key in known if COMPRESSORS[key].emits_grid},
        )
        self._feature_costs: dict[int, dict[str, float]] = {}
        self._fulls: dict[int, float] = {}
        self._reasons: dict[Plan, str | None] = {}
        self._prices: dict[int, dict[Plan, float]] = {}
        self._searches: dict[int, dict[Any, Any]] = {}
        self._free: dict[tuple[str, Plan], np.ndarray] = {}
        if not any(self.free(stage).sum() > 1 for stage in STAGES):
            raise ValueError(f"the portfolio offers nothing that this host can run: {'; '.join(self._refusals())}")

    def _refusals(self) -> list[str]:
        """Why each method, at its mildest, cannot run."""
        offers = zip(self.table.methods[1:], self.table.levels[1:], strict=True)
        choices = [(stage, Choice(method, self.table.ratios[levels[0]])) for (stage, method), levels in offers]
        return [f"{stage}:{choice.method}: {self.refusal(choice, stage, UNCOMPRESSED)}" for stage, choice in choices]

    def _unreachable(self, prefix: Plan, stage: str, choice: Choice) -> str | None:
        plan = prefix.replace(stage, choice)
        if plan not in self._reasons:
            try:
                self.host.forecast(plan, 1)
                self._reasons[plan] = None
            except ValueError as error:
                self._reasons[plan] = str(error)
        return self._reasons[plan]

    def free(self, stage: str, prefix: Plan = UNCOMPRESSED) -> np.ndarray:
        """(M, R) bool, legal actions after the decisions so far, budget apart."""
        if (stage, prefix) not in self._free:
            self._free[stage, prefix] = legal_mask(self.table, stage, prefix, self.rules)
        return self._free[stage, prefix]

    def asked(self, plan: Plan) -> tuple[str, ...]:
        """The stages at which a complete plan had a choice, budget apart."""
        prefix, asked = UNCOMPRESSED, []
        for stage in STAGES:
            if self.free(stage, prefix).sum() > 1:
                asked.append(stage)
            prefix = prefix.replace(stage, plan[stage])
        return tuple(asked)

    def price(self, plan: Plan, n_text: int) -> float:
        """FLOPs of a complete plan on a question of `n_text` prompt entries, features included."""
        known = self._prices.setdefault(n_text, {})
        if plan not in known:
            known[plan] = self.host.forecast(plan, n_text, self.answer_tokens).total + self._features(plan, n_text)
        return known[plan]

    def _features(self, plan: Plan, n_text: int) -> float:
        """FLOPs of the features of the stops at which a plan had a choice."""
        if self.feature_cost is None:
            return 0.0
        if n_text not in self._feature_costs:
            cost = self.feature_cost
            self._feature_costs[n_text] = dict(cost if isinstance(cost, Mapping) else cost(n_text))
        groups = [STOP_GROUP[stage] for stage in self.asked(plan) if stage in STOP_GROUP]
        return features_total(groups, self._feature_costs[n_text])

    def full(self, n_text: int) -> float:
        """FLOPs of the uncompressed pass, without features: what cost shares are shares of."""
        if n_text not in self._fulls:
            self._fulls[n_text] = float(self.host.forecast(UNCOMPRESSED, n_text, self.answer_tokens).total)
        return self._fulls[n_text]

    def mask(self, stage: str, prefix: Plan, n_text: int, budget: float | None = None) -> np.ndarray:
        """(M, R) bool, legal actions at a stage.

        Args:
            stage: where a decision is due.
            prefix: the decisions so far.
            n_text: prompt entries that are text.
            budget: most FLOPs of the whole pass; None = no limit.
        Raises:
            ValueError: the budget is below the cheapest completion, which the message names.
        """
        if budget is None:
            return self.free(stage, prefix)
        price, cache = self._priced(n_text)
        return legal_mask(self.table, stage, prefix, self.rules, budget=budget, cost=price, cache=cache)

    def least(self, n_text: int) -> float:
        """FLOPs of the cheapest legal plan."""
        price, cache = self._priced(n_text)
        return cheapest(self.table, price, rules=self.rules, cache=cache)[0]

    def _priced(self, n_text: int) -> tuple[Any, dict[Any, Any]]:
        return (lambda plan: self.price(plan, n_text)), self._searches.setdefault(n_text, {})

    def refusal(self, choice: Choice, stage: str, prefix: Plan) -> str:
        """Why a choice is not legal."""
        reason = refusal(choice, stage, prefix, self.rules, self.table.max_active_stages)
        return reason or "every way to go on from it exceeds the budget"

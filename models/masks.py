"""Legal actions on a real host: what it can do, which counts can be reached, and an exact hard budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foveate.compressors.registry import COMPRESSORS
from foveate.plans.masks import Rules, cheapest, legal_mask, refusal
from foveate.plans.plan import STAGES, UNCOMPRESSED, Choice, Plan
from foveate.plans.portfolio import ActionTable

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.inputs import PromptShape

STOP_GROUP = {"encoder": "block1", "outside": "encoder", "prefill": "layer1"}
"""Stop -> the token features that are computed there when a decision is due."""

ANSWER_TOKENS = 4
"""Length of the answer that costs count, its end token included.

It is the same for every plan, so that none gains by a short answer.
"""


def features_total(groups: Collection[str], cost: Mapping[str, float]) -> float:
    """FLOPs of some groups' features."""
    return sum(cost.get(group, 0.0) for group in groups)


def feature_flops(host: Host, shape: PromptShape) -> dict[str, float]:
    """Group -> FLOPs of its features on an uncompressed row."""
    from foveate.models import features  # needs torch, which masks alone do not

    return dict(features.feature_flops(host, shape))


Key = tuple["PromptShape", "int | None"]
"""A shape, and the words before its visual tokens, which tell no shapes apart but some costs."""

FeatureCost = Mapping[str, float] | Callable[["PromptShape"], Mapping[str, float]]
"""Group -> FLOPs of its features, or a function of the row's shape."""


class Forecaster(Protocol):
    """The part of a host that masks need."""

    def supports(self, stage: str, name: str, frames: int = 1) -> str | None:
        """See `foveate.models.host.Host`."""

    def prompt_shape(self, n_text: int) -> PromptShape:
        """See `foveate.models.host.Host`."""

    def forecast(self, plan: Plan, shape: PromptShape, new_tokens: int = 0, turns: int = 1) -> Any:
        """See `foveate.models.host.Host`."""


class Masks:
    """Masks of one host and one action table, with what they need remembered between episodes.

    What a row costs, and which counts can be reached on its views, hang on its shape (`Row.shape`); without one, a row
    with one picture of the host's usual size is meant.

    The price of a plan is the host's forecast (adaptive methods at their ceiling), the answer's tokens included, plus
    the features of each stop at which the portfolio leaves a choice, budget apart. A budget is kept by this price,
    which no real pass exceeds.

    Args:
        host: the model.
        table: actions on offer.
        answer_tokens: length of the answer that is counted, its end token included; 0 counts the prompt alone.
        feature_cost: shape of a row -> FLOPs of each group's features; a mapping where that does not depend on the
            row, None = free.
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
        self._grids = {
            "requires_grid": {key for key in known if COMPRESSORS[key].requires_grid},
            "emits_grid": {key for key in known if COMPRESSORS[key].emits_grid},
        }
        self._reads_phrases = any("phrase_similarity" in COMPRESSORS[key].kinds for key in known)
        self._usual = host.prompt_shape(1)
        self._rules: dict[Key, Rules] = {}
        self._feature_costs: dict[PromptShape, dict[str, float]] = {}
        self._fulls: dict[PromptShape, float] = {}
        self._reasons: dict[tuple[Plan, PromptShape, int | None], str | None] = {}
        self._prices: dict[Key, dict[Plan, float]] = {}
        self._searches: dict[Key, dict[Any, Any]] = {}
        self._free: dict[tuple[str, Plan, PromptShape, int | None], np.ndarray] = {}
        if not any(self.free(stage).sum() > 1 for stage in STAGES) and not self._for_videos():
            raise ValueError(f"the portfolio offers nothing that this host can run: {'; '.join(self._refusals())}")

    def rules(self, shape: PromptShape | None = None) -> Rules:
        """What the host can do on a row."""
        layout = self._layout(shape)
        key = (layout, layout.before)
        if key not in self._rules:
            reachable = partial(self._unreachable, layout)
            supports = self.host.supports
            if layout.frames > 1:
                supports = partial(supports, frames=layout.frames)
            self._rules[key] = Rules(supports=supports, reachable=reachable, **self._grids)
        return self._rules[key]

    def _layout(self, shape: PromptShape | None) -> PromptShape:
        """The part of a shape that legality hangs on, budget apart: all but the number of words."""
        usual = self._usual
        if shape is None or (shape.grids, shape.shown) == (usual.grids, usual.shown):
            return usual if shape is None or shape.before is not None else replace(usual, before=None)
        return shape.bare

    def _priced_as(self, shape: PromptShape) -> PromptShape:
        """The part of a shape that prices hang on: questions of one length mostly cost the same."""
        return shape if shape.phrases is None or self._reads_phrases else replace(shape, phrases=None)

    def _for_videos(self) -> bool:
        """Whether something of what the table offers runs on videos, if not on pictures."""
        return any(self.host.supports(stage, method, frames=2) is None for stage, method in self.table.methods[1:])

    def _refusals(self) -> list[str]:
        """Why each method, at its mildest, cannot run."""
        offers = zip(self.table.methods[1:], self.table.levels[1:], strict=True)
        choices = [(stage, Choice(method, self.table.ratios[levels[0]])) for (stage, method), levels in offers]
        return [f"{stage}:{choice.method}: {self.refusal(choice, stage, UNCOMPRESSED)}" for stage, choice in choices]

    def _unreachable(self, layout: PromptShape, prefix: Plan, stage: str, choice: Choice) -> str | None:
        plan = prefix.replace(stage, choice)
        key = (plan, layout, layout.before)
        if key not in self._reasons:
            try:
                self.host.forecast(plan, layout)
                self._reasons[key] = None
            except ValueError as error:
                self._reasons[key] = str(error)
        return self._reasons[key]

    def free(self, stage: str, prefix: Plan = UNCOMPRESSED, shape: PromptShape | None = None) -> np.ndarray:
        """(M, R) bool, legal actions after the decisions so far, budget apart."""
        layout = self._layout(shape)
        key = (stage, prefix, layout, layout.before)
        if key not in self._free:
            self._free[key] = legal_mask(self.table, stage, prefix, self.rules(shape))
        return self._free[key]

    def asked(self, plan: Plan, shape: PromptShape | None = None) -> tuple[str, ...]:
        """The stages at which a complete plan had a choice, budget apart."""
        prefix, asked = UNCOMPRESSED, []
        for stage in STAGES:
            if self.free(stage, prefix, shape).sum() > 1:
                asked.append(stage)
            prefix = prefix.replace(stage, plan[stage])
        return tuple(asked)

    def price(self, plan: Plan, shape: PromptShape) -> float:
        """FLOPs of a complete plan on a row, features included."""
        shape = self._priced_as(shape)
        known = self._prices.setdefault((shape, shape.before), {})
        if plan not in known:
            known[plan] = self.host.forecast(plan, shape, self.answer_tokens).total + self._features(plan, shape)
        return known[plan]

    def _features(self, plan: Plan, shape: PromptShape) -> float:
        """FLOPs of the features of the stops at which a plan had a choice."""
        if self.feature_cost is None:
            return 0.0
        if shape not in self._feature_costs:
            cost = self.feature_cost
            self._feature_costs[shape] = dict(cost if isinstance(cost, Mapping) else cost(shape))
        groups = [STOP_GROUP[stage] for stage in self.asked(plan, shape) if stage in STOP_GROUP]
        again = self._again(shape) if STOP_GROUP["prefill"] in groups and self._windows(plan) else 0.0
        return features_total(groups, self._feature_costs[shape]) + again

    @staticmethod
    def _windows(plan: Plan) -> bool:
        """Whether the plan's prompt runs in windows, which do not go on from a layer that has run for its features."""
        return getattr(COMPRESSORS.get(("prefill", plan["prefill"].method)), "windowed", False)

    def _again(self, shape: PromptShape) -> float:
        """FLOPs of one decoder layer over an uncompressed prompt."""
        entries = self.host.forecast(UNCOMPRESSED, shape).entries
        layers = sum(flops for stage, what, flops, _ in entries if (stage, what) == ("prefill", "layers"))
        return layers / self.host.decoder_depth

    def full(self, shape: PromptShape) -> float:
        """FLOPs of the uncompressed pass, without features: what cost shares are shares of."""
        shape = self._priced_as(shape)
        if shape not in self._fulls:
            self._fulls[shape] = float(self.host.forecast(UNCOMPRESSED, shape, self.answer_tokens).total)
        return self._fulls[shape]

    def mask(self, stage: str, prefix: Plan, shape: PromptShape, budget: float | None = None) -> np.ndarray:
        """(M, R) bool, legal actions at a stage.

        Args:
            stage: where a decision is due.
            prefix: the decisions so far.
            shape: of the row.
            budget: most FLOPs of the whole pass; None = no limit.
        Raises:
            ValueError: the budget is below the cheapest completion, which the message names.
        """
        if budget is None:
            return self.free(stage, prefix, shape)
        price, cache = self._priced(shape)
        return legal_mask(self.table, stage, prefix, self.rules(shape), budget=budget, cost=price, cache=cache)

    def least(self, shape: PromptShape) -> float:
        """FLOPs of the cheapest legal plan."""
        price, cache = self._priced(shape)
        return cheapest(self.table, price, rules=self.rules(shape), cache=cache)[0]

    def _priced(self, shape: PromptShape) -> tuple[Any, dict[Any, Any]]:
        return (lambda plan: self.price(plan, shape)), self._searches.setdefault(
            (self._priced_as(shape), shape.before), {}
        )

    def refusal(self, choice: Choice, stage: str, prefix: Plan, shape: PromptShape | None = None) -> str:
        """Why a choice is not legal."""
        reason = refusal(choice, stage, prefix, self.rules(shape), self.table.max_active_stages)
        return reason or "every way to go on from it exceeds the budget"

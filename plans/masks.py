"""Which actions are legal at a stage: what the host can do, a whole or a broken grid, and an exact hard budget.

The budget is exact by backward induction: an action is legal iff what is spent, its own cost and the cheapest
completion after it stay within the budget. All three are one number here, the total of a complete plan, so the rule
reads: some legal complete plan that begins with the decisions so far and this action costs no more than the budget.
Nothing is assumed of the costs (no monotony, no sum of stages), because the price of a late stage depends on what
earlier ones left.

Cost of the search: with P legal complete plans the cost callback runs at most P times and the memo holds at most 7 P
entries. A dict passed as `cache` is shared between the stages of an episode, and between episodes for which the
callback gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.plans.plan import NONE, STAGES, UNCOMPRESSED, Choice, Plan, stage_index
from foveate.plans.portfolio import ActionTable

Cost = Callable[[Plan], float]
"""FLOPs of a complete plan as the host forecasts them, adaptive methods at their ceiling. After some stages have run,
the caller may give a callback that knows what was really spent, with a fresh cache."""


def _supported(stage: str, method: str) -> str | None:
    return None


def _reachable(prefix: Plan, stage: str, choice: Choice) -> str | None:
    return None


@dataclass(frozen=True)
class Rules:
    """What a host can do, budget apart. `none` and `blind` need nothing and are never asked about.

    Args:
        supports: (stage, method) -> None for yes, else the reason why not (signal missing, wrong modality, no weights).
        reachable: (plan so far, stage, choice) -> None for yes, else the reason (a count that the method cannot give
            there).
        requires_grid: (stage, method) pairs that need a whole grid of tokens.
        emits_grid: (stage, method) pairs that leave one. Any other method behind `input` leaves an irregular set.
    """

    supports: Callable[[str, str], str | None] = _supported
    reachable: Callable[[Plan, str, Choice], str | None] = _reachable
    requires_grid: Collection[tuple[str, str]] = frozenset()
    emits_grid: Collection[tuple[str, str]] = frozenset()

    def grid_broken_after(self, stage: str, choice: Choice, broken: bool) -> bool:
        """Whether the tokens that leave a stage no longer form a grid, given whether those that entered it did not."""
        if choice.is_none:
            return broken
        return stage != "input" and (stage, choice.method) not in self.emits_grid

    def grid_broken(self, plan: Plan) -> bool:
        """Whether a plan's stages so far have broken the grid."""
        broken = False
        for stage, choice in plan.active:
            broken = self.grid_broken_after(stage, choice, broken)
        return broken


ANYTHING = Rules()
"""A host that can do everything everywhere."""


def refusal(
    choice: Choice,
    stage: str,
    prefix: Plan,
    rules: Rules,
    max_active_stages: int = len(STAGES),
    grid_broken: bool | None = None,
) -> str | None:
    """Why a choice is not legal after the decisions so far, budget apart; None = it is.

    Args:
        choice: what is asked for.
        stage: where.
        prefix: the decisions so far, `none` at `stage` and behind it.
        rules: what the host can do.
        max_active_stages: most stages at which the plan may act.
        grid_broken: whether the tokens at hand have lost their grid; None = as the rules say of the prefix.
    """
    if choice.is_none:
        return None
    if prefix.is_blind:
        return "the plan is blind: no visual token is left"
    if len(prefix.active) >= max_active_stages:
        return f"{len(prefix.active)} stages are active already, the most that the portfolio allows"
    if choice.method == "blind":
        return None if stage == "input" else "blind is a choice at input only"
    reason = rules.supports(stage, choice.method)
    if reason is not None:
        return reason
    broken = rules.grid_broken(prefix) if grid_broken is None else grid_broken
    if broken and (stage, choice.method) in rules.requires_grid:
        return f"{choice.method} needs a whole grid, which an earlier stage has broken"
    return rules.reachable(prefix, stage, choice)


def plan_refusal(plan: Plan, rules: Rules = ANYTHING, max_active_stages: int = len(STAGES)) -> str | None:
    """Why a complete plan is not legal, "stage:method: reason" of its first fault; None = it is."""
    prefix = UNCOMPRESSED
    for stage, choice in plan.active:
        reason = refusal(choice, stage, prefix, rules, max_active_stages)
        if reason is not None:
            return f"{stage}:{choice.method}: {reason}"
        prefix = prefix.replace(stage, choice)
    return None


def legal_mask(
    table: ActionTable,
    stage: str,
    prefix: Plan = UNCOMPRESSED,
    rules: Rules = ANYTHING,
    *,
    grid_broken: bool | None = None,
    budget: float | None = None,
    cost: Cost | None = None,
    cache: dict[Any, Any] | None = None,
) -> np.ndarray:
    """(M, R) bool: the legal actions at a stage after the decisions so far.

    Args:
        table: what is on offer.
        stage: where a decision is due.
        prefix: the decisions so far, `none` at `stage` and behind it.
        rules: what the host can do.
        grid_broken: whether the tokens at hand have lost their grid; None = as the rules say of the prefix.
        budget: most FLOPs that the complete plan may cost; None = no limit.
        cost: FLOPs of a complete plan, needed with a budget.
        cache: memo of the search, filled in place; valid for one table, one set of rules and one cost callback.
    Raises:
        ValueError: the prefix decides `stage` or a later one, a budget comes without a cost, a cost is not a number, or
            no complete plan from here is within the budget (the message names the cheapest and both numbers).
    """
    index = stage_index(stage)
    _check_prefix(prefix, index)
    broken = rules.grid_broken(prefix) if grid_broken is None else grid_broken
    search = _Search(table, rules, cost, {} if cache is None else cache)
    if budget is None:
        mask = np.zeros(table.shape, dtype=bool)
        for m, r, *_ in search.branches(index, prefix, broken):
            mask[m, r] = True
        return mask
    mask = search.floors(index, prefix, broken) <= budget
    if not mask.any():
        least, plan = search.cheapest(index, prefix, broken)
        raise ValueError(f"budget of {budget} FLOPs is below the cheapest plan, {plan.label()} at {least} FLOPs")
    return mask


def cheapest(
    table: ActionTable,
    cost: Cost,
    stage: str = STAGES[0],
    prefix: Plan = UNCOMPRESSED,
    rules: Rules = ANYTHING,
    *,
    grid_broken: bool | None = None,
    cache: dict[Any, Any] | None = None,
) -> tuple[float, Plan]:
    """FLOPs and plan of the cheapest legal completion of the decisions so far; of equals, the first in table order.

    Arguments and errors as in `legal_mask`.
    """
    index = stage_index(stage)
    _check_prefix(prefix, index)
    broken = rules.grid_broken(prefix) if grid_broken is None else grid_broken
    return _Search(table, rules, cost, {} if cache is None else cache).cheapest(index, prefix, broken)


def _check_prefix(prefix: Plan, index: int) -> None:
    for stage in STAGES[index:]:
        if prefix[stage] != NONE:
            raise ValueError(f"the plan so far, {prefix.label()}, already decides {stage}")


@dataclass(frozen=True)
class _Search:
    table: ActionTable
    rules: Rules
    cost: Cost | None
    cache: dict[Any, Any] = field(default_factory=dict)

    def branches(self, index: int, prefix: Plan, broken: bool) -> list[tuple[int, int, Choice, bool]]:
        """(m, r, choice, grid broken after it) of each choice that nothing but the budget could forbid."""
        stage, most = STAGES[index], self.table.max_active_stages
        return [
            (m, r, choice, self.rules.grid_broken_after(stage, choice, broken))
            for m, r, choice in self.table.offers(stage)
            if refusal(choice, stage, prefix, self.rules, most, broken) is None
        ]

    def floors(self, index: int, prefix: Plan, broken: bool) -> np.ndarray:
        """(M, R) float64: FLOPs of the cheapest completion behind each action; NaN where one is not legal."""
        key = ("floors", index, prefix, broken)
        if key not in self.cache:
            found = np.full(self.table.shape, np.nan)
            for m, r, choice, after in self.branches(index, prefix, broken):
                found[m, r] = self.cheapest(index + 1, prefix.replace(STAGES[index], choice), after)[0]
            self.cache[key] = found
        return self.cache[key]

    def cheapest(self, index: int, prefix: Plan, broken: bool) -> tuple[float, Plan]:
        """The cheapest completion where stages from `index` on are open."""
        done = index == len(STAGES)
        key = (index, prefix, broken and not done)
        if key not in self.cache:
            if done:
                self.cache[key] = self.price(prefix), prefix
            else:
                stage = STAGES[index]
                found = (
                    self.cheapest(index + 1, prefix.replace(stage, choice), after)
                    for _, _, choice, after in self.branches(index, prefix, broken)
                )
                self.cache[key] = min(found, key=lambda pair: pair[0])
        return self.cache[key]

    def price(self, plan: Plan) -> float:
        if self.cost is None:
            raise ValueError("a budget needs a cost callback")
        total = self.cost(plan)
        if not total >= 0:  # also catches NaN, which would pass every comparison as false
            raise ValueError(f"cost of plan {plan.label()} = {total} is not a number of FLOPs")
        return total

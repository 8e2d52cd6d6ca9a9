"""Masks against a slow twin: every legal complete plan listed, priced and compared with the budget."""

import itertools
import random

import numpy as np
import pytest

from foveate.plans.masks import ANYTHING, Rules, cheapest, legal_mask, plan_refusal, refusal
from foveate.plans.plan import BLIND, NONE, STAGES, UNCOMPRESSED, Choice, Plan
from foveate.plans.portfolio import ActionTable, Portfolio, all_plans

pytestmark = pytest.mark.fast

OWN = Portfolio.from_dict(
    {
        "version": 1,
        "name": "own",
        "max_active_stages": 3,
        "stages": {
            "input": {"blind": [0], "downsample": [0.5]},
            "outside": {"random": [0.5], "pool": [0.25]},
            "projector": {"average_pool": [0.5, 0.25]},
            "prefill": {"fastv": [0.5, 0.25]},
            "decode": {"look_m": [0.5]},
        },
    }
)
TABLE = ActionTable.from_portfolio(OWN)
GRID = Rules(
    requires_grid={("outside", "pool"), ("projector", "average_pool")},
    emits_grid={("outside", "pool"), ("projector", "average_pool")},
)


def no_question(stage, method):
    return "the host has no text tower" if method == "fastv" else None


def halves_only(prefix, stage, choice):
    return "9 tokens have no quarter" if choice.keep == 0.25 and prefix["input"] != NONE else None


STRICT = Rules(no_question, halves_only, GRID.requires_grid, GRID.emits_grid)


def price_list(seed):
    """An arbitrary price for every plan: no order, no sum of stages, as the exact rule must not rely on either."""
    rng = random.Random(seed)
    return {plan: rng.randrange(10, 1000) for plan in all_plans(OWN)}


def starts_with(plan, prefix, stage):
    index = STAGES.index(stage)
    return plan.choices[:index] == prefix.choices[:index]


def slow_mask(stage, prefix, rules, prices, budget):
    mask = np.zeros(TABLE.shape, dtype=bool)
    for plan, price in prices.items():
        if starts_with(plan, prefix, stage) and plan_refusal(plan, rules) is None and price <= budget:
            mask[TABLE.encode(plan[stage], stage)] = True
    return mask


def actions(mask):
    return {tuple(int(i) for i in pair) for pair in np.argwhere(mask)}


@pytest.mark.parametrize("rules", [ANYTHING, GRID, STRICT], ids=["anything", "grid", "strict"])
@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_the_enumeration_of_all_legal_plans_at_every_prefix(rules, seed):
    prices = price_list(seed)
    cache = {}
    legal = [plan for plan in prices if plan_refusal(plan, rules, 3) is None]
    seen = {(stage, Plan(p.choices[:i] + (NONE,) * (6 - i))) for p in legal for i, stage in enumerate(STAGES)}
    compared = 0
    for budget, (stage, prefix) in itertools.product((50, 200, 500, 999), seen):
        expected = slow_mask(stage, prefix, rules, prices, budget)
        arguments = {"budget": budget, "cost": prices.__getitem__, "cache": cache}
        if expected.any():
            np.testing.assert_array_equal(legal_mask(TABLE, stage, prefix, rules, **arguments), expected)
            compared += 1
        else:
            with pytest.raises(ValueError, match=f"budget of {budget} FLOPs is below the cheapest plan"):
                legal_mask(TABLE, stage, prefix, rules, **arguments)
    assert compared > len(seen)


def test_any_walk_through_legal_actions_ends_within_the_budget():
    prices = price_list(7)
    budget, rng, cache, ends = 120, random.Random(0), {}, set()
    for _ in range(200):
        plan = UNCOMPRESSED
        for stage in STAGES:
            mask = legal_mask(TABLE, stage, plan, GRID, budget=budget, cost=prices.__getitem__, cache=cache)
            plan = plan.replace(stage, TABLE.decode(stage, *rng.choice(sorted(actions(mask)))))
        ends.add(plan)
        assert prices[plan] <= budget and plan_refusal(plan, GRID, 3) is None
    affordable = {p for p, price in prices.items() if price <= budget and plan_refusal(p, GRID, 3) is None}
    assert ends == affordable  # nothing within the budget is out of reach either


def test_a_budget_below_the_cheapest_plan_is_refused_by_name_with_both_numbers():
    prices = dict.fromkeys(all_plans(OWN), 1000) | {Plan.of(prefill=("fastv", 0.25)): 400}
    with pytest.raises(ValueError, match=r"budget of 399 FLOPs .* plan, prefill:fastv@0.25 at 400 FLOPs"):
        legal_mask(TABLE, "input", budget=399, cost=prices.__getitem__)
    exact = legal_mask(TABLE, "input", budget=400, cost=prices.__getitem__)
    assert actions(exact) == {(0, 0)}  # only `none` still leads to fastv


def test_a_dear_early_action_is_legal_where_a_later_one_makes_up_for_it():
    """Spent 90 of 100 at the input, and yet within the budget: decode saves what the input wasted."""
    table = ActionTable.from_portfolio(
        Portfolio.from_dict(
            {"version": 1, "name": "s", "stages": {"input": {"downsample": [0.5]}, "decode": {"look_m": [0.5]}}}
        )
    )
    both = Plan.of(input=("downsample", 0.5), decode=("look_m", 0.5))
    prices = {UNCOMPRESSED: 80, Plan.of(input=("downsample", 0.5)): 130, Plan.of(decode=("look_m", 0.5)): 95, both: 100}
    first = legal_mask(table, "input", budget=100, cost=prices.__getitem__)
    assert actions(first) == {(0, 0), (1, 1)}
    after = UNCOMPRESSED.replace("input", Choice("downsample", 0.5))
    assert actions(legal_mask(table, "decode", after, budget=100, cost=prices.__getitem__)) == {(2, 1)}


def test_the_cost_callback_runs_once_for_each_legal_plan_when_the_cache_is_shared():
    prices, calls, cache = price_list(1), [], {}

    def cost(plan):
        calls.append(plan)
        return prices[plan]

    plan = UNCOMPRESSED
    for stage in STAGES:
        legal_mask(TABLE, stage, plan, GRID, budget=1000, cost=cost, cache=cache)
    legal = {plan for plan in prices if plan_refusal(plan, GRID, 3) is None}
    assert len(calls) == len(legal) and set(calls) == legal
    assert len(cache) <= 7 * len(legal)


def test_cheapest_is_the_minimum_over_legal_completions():
    prices = price_list(3)
    legal = {plan: price for plan, price in prices.items() if plan_refusal(plan, STRICT, 3) is None}
    assert cheapest(TABLE, prices.__getitem__, rules=STRICT)[0] == min(legal.values())
    prefix = Plan.of(outside=("random", 0.5))
    inside = [price for plan, price in legal.items() if starts_with(plan, prefix, "projector")]
    value, plan = cheapest(TABLE, prices.__getitem__, "projector", prefix, STRICT)
    assert value == min(inside) == prices[plan] and plan["outside"] == Choice("random", 0.5)


def test_of_equally_cheap_plans_the_first_in_table_order_is_named():
    assert cheapest(TABLE, lambda plan: 5) == (5, UNCOMPRESSED)


def test_without_a_budget_only_the_rules_speak():
    assert actions(legal_mask(TABLE, "prefill")) == {(0, 0)} | {
        TABLE.encode(c, "prefill") for c in OWN.choices["prefill"]
    }
    assert actions(legal_mask(TABLE, "prefill", rules=STRICT)) == {(0, 0)}


def test_after_blind_only_none_is_left():
    for stage in STAGES[1:]:
        assert actions(legal_mask(TABLE, stage, BLIND)) == {(0, 0)}
    assert refusal(Choice("fastv", 0.5), "prefill", BLIND, ANYTHING) == "the plan is blind: no visual token is left"


def test_blind_is_never_asked_of_the_host():
    nothing = Rules(supports=lambda stage, method: "no", reachable=lambda prefix, stage, choice: "no")
    assert actions(legal_mask(TABLE, "input", rules=nothing)) == {(0, 0), TABLE.encode(Choice("blind", 0.0), "input")}


def test_the_cap_on_active_stages_leaves_none():
    three = Plan.of(input=("downsample", 0.5), outside=("random", 0.5), projector=("average_pool", 0.5))
    assert actions(legal_mask(TABLE, "prefill", three)) == {(0, 0)}
    assert len(actions(legal_mask(TABLE, "prefill", three.replace("input", NONE)))) == 3


class TestGrid:
    irregular = Plan.of(outside=("random", 0.5))
    pooled = Plan.of(outside=("pool", 0.25))
    smaller = Plan.of(input=("downsample", 0.5))

    def test_a_grid_method_cannot_follow_an_irregular_drop(self):
        assert actions(legal_mask(TABLE, "projector", self.irregular, GRID)) == {(0, 0)}
        reason = refusal(Choice("average_pool", 0.5), "projector", self.irregular, GRID)
        assert reason == "average_pool needs a whole grid, which an earlier stage has broken"

    @pytest.mark.parametrize("prefix", [pooled, smaller, UNCOMPRESSED])
    def test_a_grid_method_follows_whatever_leaves_a_grid(self, prefix):
        assert len(actions(legal_mask(TABLE, "projector", prefix, GRID))) == 3

    def test_the_flag_of_the_host_overrules_what_the_plan_suggests(self):
        assert actions(legal_mask(TABLE, "projector", UNCOMPRESSED, GRID, grid_broken=True)) == {(0, 0)}
        assert len(actions(legal_mask(TABLE, "projector", self.irregular, GRID, grid_broken=False))) == 3

    def test_the_flag_also_decides_what_may_complete_a_plan_even_with_a_shared_cache(self):
        cache = {}
        prices = dict.fromkeys(all_plans(OWN), 100) | {Plan.of(projector=("average_pool", 0.25)): 10}
        arguments = {"budget": 10, "cost": prices.__getitem__, "cache": cache}
        assert actions(legal_mask(TABLE, "outside", UNCOMPRESSED, GRID, **arguments)) == {(0, 0)}
        with pytest.raises(ValueError, match="cheapest plan, none at 100"):
            legal_mask(TABLE, "outside", UNCOMPRESSED, GRID, grid_broken=True, **arguments)


def test_a_plan_is_refused_at_its_first_fault():
    plan = Plan.of(outside=("random", 0.5), projector=("average_pool", 0.5), prefill=("fastv", 0.5))
    assert (
        plan_refusal(plan, STRICT)
        == "projector:average_pool: average_pool needs a whole grid, which an earlier stage has broken"
    )
    assert plan_refusal(plan.replace("projector", NONE), STRICT) == "prefill:fastv: the host has no text tower"
    assert plan_refusal(Plan.of(decode=("look_m", 0.5)), STRICT) is None
    assert "the most that the portfolio allows" in plan_refusal(plan, ANYTHING, 2)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="the plan so far, prefill:fastv@0.5, already decides prefill"):
        legal_mask(TABLE, "outside", Plan.of(prefill=("fastv", 0.5)))
    with pytest.raises(ValueError, match="a budget needs a cost callback"):
        legal_mask(TABLE, "outside", budget=10)
    with pytest.raises(ValueError, match="cost of plan none = nan is not a number of FLOPs"):
        legal_mask(TABLE, "decode", budget=10, cost=lambda plan: float("nan"))
    with pytest.raises(ValueError, match="unknown stage 'out'"):
        legal_mask(TABLE, "out")

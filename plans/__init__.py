"""Plans, portfolios, action tables, masks and the analytic cost model. Needs numpy alone; YAML files need PyYAML."""

from foveate.plans.masks import Rules, cheapest, legal_mask, plan_refusal
from foveate.plans.named import load_plan, named_plans
from foveate.plans.plan import BLIND, NONE, STAGES, UNCOMPRESSED, Choice, Plan, keep_count
from foveate.plans.portfolio import ActionTable, Portfolio, all_plans, one_stage_plans

__all__ = [
    "BLIND",
    "NONE",
    "STAGES",
    "UNCOMPRESSED",
    "ActionTable",
    "Choice",
    "Plan",
    "Portfolio",
    "Rules",
    "all_plans",
    "cheapest",
    "keep_count",
    "legal_mask",
    "load_plan",
    "named_plans",
    "one_stage_plans",
    "plan_refusal",
]

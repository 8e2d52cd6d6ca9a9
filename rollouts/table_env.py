"""TableVecEnv: the decision problem answered from a replay table instead of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from foveate.controller.observation import (
    GROUPS,
    HEAD,
    LAMBDA_LIMITS,
    MAX_SHARE,
    TOKEN_GROUPS,
    Layout,
)
from foveate.envs.episode import Terms
from foveate.envs.masks import STOP_GROUP, features_total
from foveate.envs.quality import check_mode
from foveate.plans.plan import STAGES, Plan
from foveate.plans.portfolio import ActionTable, Portfolio
from foveate.rollouts.common import Observation, SharedVecEnv
from foveate.rollouts.draws import episode_rng, group_id
from foveate.rollouts.table import Table


class TableVecEnv(SharedVecEnv):
    """The same episodes as `CompressionEnv`, for portfolios that act at one stage at most.

    There the table is exact: until a method acts, every stop lies on the uncompressed path, whose features and costs
    were recorded, and behind it nothing is left to decide. Environments g * k .. g * k + k - 1 are the rollouts of
    group g: in episode number e all of them get the same input, lambda and budget, so that they can be compared with
    each other. A plan of the portfolio that the table lacks is never legal. What the table did not record (`reach`)
    reads as nothing spent before the end.

    `infos[i]` is empty within an episode; at its end it holds input, regime, family, lam, budget, group
    (`draws.group_id`), number, plan, column (of the table), quality, cost (share of the uncompressed FLOPs, features
    included), correct, prob, `episode` ({"r": return, "l": steps}), `terminal_observation` and `TimeLimit.truncated`.

    Args:
        table: what every plan gives.
        portfolio: what is on offer; None = the one in the table's meta.
        terms: how episodes are drawn and paid for; `one_shot` shows pixels and question only.
        groups: groups of rollouts.
        k: rollouts in a group.
        seed: of the draws.
    Raises:
        ValueError: a portfolio with more than one active stage, a table without any of its plans or filled with other
            features.
    """

    def __init__(
        self,
        table: Table,
        portfolio: Portfolio | None = None,
        terms: Terms | None = None,
        groups: int = 8,
        k: int = 4,
        seed: int = 0,
    ) -> None:
        if groups < 1 or k < 1:
            raise ValueError(f"groups = {groups} and k = {k} must be at least 1")
        self.terms = terms or Terms()
        self.table, self.groups, self.k, self.seed_of_draws = table, groups, k, seed
        self.actions_of = ActionTable.from_portfolio(_one_stage(portfolio, table))
        self.layout = Layout.of_recorded(table.group_names)
        self._prepare()
        self.set_b(self.terms.b)
        low, high = self.layout.bounds()
        space = {"vector": spaces.Box(low, high, dtype=np.float32), "mask": spaces.MultiBinary(self.actions_of.shape)}
        self.render_mode = None
        super().__init__(groups * k, spaces.Dict(space), spaces.MultiDiscrete(self.actions_of.shape))
        self._episodes_over()

    # -- what the table says, in arrays ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Prices, masks' parts and the observation's fixed part."""
        table, offers = self.table, self.actions_of.offers
        self._offer: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # by stage: m, r, column
        for stage in STAGES:
            rows = [(m, r, table.column.get(Plan.of(**{stage: c}))) for m, r, c in offers(stage) if not c.is_none]
            found = np.array([row for row in rows if row[2] is not None], dtype=np.intp).reshape(-1, 3)
            self._offer.append((found[:, 0], found[:, 1], found[:, 2]))
        if not any(len(column) for _, _, column in self._offer):
            raise ValueError("the table holds none of the portfolio's plans")
        shown, features = [], []  # by stage: FLOPs of the features of all stops up to it at which there is a choice
        for stage, (_, _, column) in zip(STAGES, self._offer, strict=True):
            group = STOP_GROUP.get(stage)
            if len(column) and group in table.group_names and not self.terms.one_shot:
                shown.append(group)
            features.append(features_total(shown, table.group_cost))
        self._price = [table.cost[:, column] + cost for (_, _, column), cost in zip(self._offer, features, strict=True)]
        later = table.full + features[-1]
        self._later: list[np.ndarray] = []  # by stage: the cheapest plan that does nothing up to and including it
        for price in reversed(self._price):
            self._later.insert(0, later)
            later = np.minimum(later, price.min(axis=1)) if price.shape[1] else later
        self._least = later
        self._labels = [plan.label() for plan in table.plans]
        self._column = np.zeros((len(STAGES), *self.actions_of.shape), np.intp)
        for stage, (m, r, column) in enumerate(self._offer):
            self._column[stage, m, r] = column
        self._reach = np.zeros((table.n, len(STAGES))) if table.reach is None else table.reach
        groups = {name: np.nonzero(_inside(self.layout, name))[0] for name in GROUPS}
        self._places = np.zeros((len(GROUPS), self.layout.size), np.float32)
        self._known = np.zeros((table.n, self.layout.size), np.float32)
        for number, name in enumerate(GROUPS):
            self._places[number, groups[name]] = 1.0
            if name in table.groups:
                self._known[:, groups[name][0]] = 1.0
                self._known[:, groups[name][1:]] = table.groups[name]
        if not np.isfinite(self._known).all():
            raise ValueError("the table holds features that are not finite numbers")

    def _episodes_over(self) -> None:
        """Every environment stands before its first episode."""
        n = self.num_envs
        self._number = np.full(n, -1)
        self._row, self._at, self._steps = np.zeros(n, np.intp), np.zeros(n, np.intp), np.zeros(n, np.intp)
        self._lam, self._budget = np.ones(n), np.full(n, np.inf)  # budget: share, infinite = none
        self._spent, self._paid, self._return = np.zeros(n), np.zeros(n), np.zeros(n)
        self._plan = np.zeros(n, np.intp)
        self._shown = np.zeros((n, len(GROUPS)), np.float32)
        self._drawn: dict[tuple[int, int], tuple[int, float, float]] = {}

    # -- episodes ----------------------------------------------------------------------------------------------------

    def _draw(self, group: int, number: int) -> tuple[int, float, float]:
        """Row, lambda and budget (infinite = none) of an episode."""
        key = (group, number)
        if key not in self._drawn:
            if len(self._drawn) > 64 * self.groups:
                self._drawn.clear()
            rng = episode_rng(self.seed_of_draws, group, number)
            row = int(rng.integers(self.table.n))
            lam = self.terms.draw_lambda(rng)
            budget = self.terms.draw_budget(rng, float(self._least[row] / self.table.full[row]))
            self._drawn[key] = row, lam, np.inf if budget is None else budget
        return self._drawn[key]

    def _begin(self, envs: np.ndarray) -> None:
        """The next episode of some environments, at its first decision."""
        self._number[envs] += 1
        for env in envs.tolist():
            self._row[env], self._lam[env], self._budget[env] = self._draw(env // self.k, int(self._number[env]))
        self._at[envs] = self._steps[envs] = self._plan[envs] = 0
        self._spent[envs] = self._paid[envs] = self._return[envs] = 0.0
        self._shown[envs] = [name in ("pixels", "question") for name in GROUPS]
        idle = self._pass_by(envs)
        self._at[idle] = self._plan[idle] = 0  # nothing to decide: the first stage is shown with its one action

    def _limit(self, envs: np.ndarray) -> np.ndarray:
        return self._budget[envs] * self.table.full[self._row[envs]] * (1 + 1e-9)

    def masks(self, envs: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(n, M, R) bool, the legal actions of some (None = all) environments."""
        envs = np.arange(self.num_envs) if envs is None else np.asarray(envs, np.intp)
        out = np.zeros((len(envs), *self.actions_of.shape), dtype=bool)
        limit = self._limit(envs)
        for stage, (m, r, _) in enumerate(self._offer):
            here = np.flatnonzero(self._at[envs] == stage)
            rows = self._row[envs[here]]
            out[here, 0, 0] = self._later[stage][rows] <= limit[here]
            out[here[:, None], m[None], r[None]] = self._price[stage][rows] <= limit[here, None]
        out[self._at[envs] == len(STAGES), 0, 0] = True
        return out

    def _pass_by(self, envs: np.ndarray) -> np.ndarray:
        """Settles stages with one legal action, up to a stop where a decision is due. Returns those that are over."""
        over, moving = [], envs
        while len(moving):
            ended = self._at[moving] == len(STAGES)
            over.append(moving[ended])
            moving = moving[~ended]
            mask = self.masks(moving)
            due = mask.sum(axis=(1, 2)) > 1
            self._stop(moving[due])
            moving, mask = moving[~due], mask[~due]
            forced = mask.reshape(len(moving), mask.shape[1] * mask.shape[2]).argmax(axis=1)
            self._settle(moving, *np.divmod(forced, self.actions_of.shape[1]))
        return np.concatenate(over) if over else envs[:0]

    def _stop(self, envs: np.ndarray) -> None:
        """A decision is due: features are shown and paid for."""
        if self.terms.one_shot:
            return
        for stage, group in STOP_GROUP.items():
            here = envs[self._at[envs] == STAGES.index(stage)]
            if group in self.table.group_names:
                self._shown[here, GROUPS.index(group)] = 1.0
        self._spent[envs] = self._reach[self._row[envs], self._at[envs]] + self._features(envs)

    def _features(self, envs: np.ndarray) -> np.ndarray:
        """FLOPs of the token features shown so far."""
        cost = np.array([self.table.group_cost.get(group, 0.0) if group in TOKEN_GROUPS else 0.0 for group in GROUPS])
        return self._shown[envs].astype(np.float64) @ cost

    def _settle(self, envs: np.ndarray, m: np.ndarray, r: np.ndarray) -> None:
        """One legal action each; a method ends the episode, since nothing may act behind it."""
        at = self._at[envs]
        self._plan[envs] = self._column[at, m, r]
        self._at[envs] = np.where(self._plan[envs] > 0, len(STAGES), at + 1)

    # -- observations ------------------------------------------------------------------------------------------------

    def _observe(self, envs: np.ndarray) -> Observation:
        """Fresh arrays "vector" (n, D) float32 and "mask" (n, M, R) int8."""
        vector = self._known[self._row[envs]] * (self._shown[envs] @ self._places)
        at = np.minimum(self._at[envs], len(STAGES) - 1)
        vector[np.arange(len(envs)), at] = 1.0
        full = self.table.full[self._row[envs]]
        spent, budget = self._spent[envs] / full, self._budget[envs]
        left = np.where(np.isinf(budget), MAX_SHARE, budget - spent)
        head = {
            "log_lambda": np.log10(self._lam[envs].clip(*LAMBDA_LIMITS)) / 2,
            "has_budget": np.isfinite(budget),
            "budget_left": left.clip(0, MAX_SHARE),
            "spent": spent.clip(0, MAX_SHARE),
            "tokens_left": 1.0,
        }
        for name, value in head.items():
            vector[:, HEAD.index(name)] = value
        return {"vector": vector, "mask": self.masks(envs).astype(np.int8)}

    # -- VecEnv --------------------------------------------------------------------------------------------------------

    def reset(self) -> Observation:
        """Every environment begins an episode; after `seed(s)` from the first one of that seed."""
        if self._seeds[0] is not None:
            self.seed_of_draws = self._seeds[0]
            self._episodes_over()
        self._reset_seeds()
        self._reset_options()
        everyone = np.arange(self.num_envs)
        self._begin(everyone)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._observe(everyone)

    def step_async(self, actions: np.ndarray) -> None:
        """Takes one action (m, r) for each environment."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """The step. Raises: ValueError on an action that is not legal; nothing has changed then."""
        everyone = np.arange(self.num_envs)
        m, r = self._checked(self._actions)
        self._settle(everyone, m, r)
        self._steps += 1
        over = self._pass_by(everyone)
        done = np.zeros(self.num_envs, bool)
        done[over] = True
        column = self._plan[over]
        self._spent[over] = self.table.cost[self._row[over], column] + self._features(over)
        reward = -self._lam * (self._spent - self._paid) / self.table.full[self._row]
        self._paid = self._spent.copy()
        quality = self._quality[self._row[over], column]
        reward[over] += quality
        self._return += reward
        infos: list[dict[str, Any]] = [{} for _ in everyone]
        if len(over):
            last = self._observe(over)
            for number, env in enumerate(over.tolist()):
                terminal = {name: values[number].copy() for name, values in last.items()}
                infos[env] = self._info(env, float(quality[number])) | {"terminal_observation": terminal}
            self._begin(over)
        return self._observe(everyone), reward.astype(np.float32), done, infos

    def _checked(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """m (n,) and r (n,). Raises: ValueError naming environment, stage and action."""
        shape = self.actions_of.shape
        if actions.shape != (self.num_envs, 2) or not np.array_equal(actions, np.floor(actions)):
            raise ValueError(f"actions: need whole numbers ({self.num_envs}, 2), got {actions.dtype} {actions.shape}")
        inside = (actions >= 0).all(axis=1) & (actions < np.array(shape)).all(axis=1)
        m, r = np.where(inside[:, None], actions, 0).astype(np.intp).T
        wrong = np.flatnonzero(~inside | ~self.masks()[np.arange(self.num_envs), m, r])
        if len(wrong):
            env = int(wrong[0])
            raise ValueError(
                f"{STAGES[self._at[env]]}: action {tuple(actions[env].tolist())} of environment {env} is not legal"
            )
        return m, r

    def _info(self, env: int, quality: float) -> dict[str, Any]:
        """What a finished episode tells."""
        row, column, table = int(self._row[env]), int(self._plan[env]), self.table
        group, number = env // self.k, int(self._number[env])
        return {
            "input": str(table.ids[row]),
            "regime": str(table.regimes[row]),
            "family": str(table.families[row]),
            "lam": float(self._lam[env]),
            "budget": None if np.isinf(self._budget[env]) else float(self._budget[env]),
            "group": group_id(group, number, self.groups),
            "number": number,
            "plan": self._labels[column],
            "column": column,
            "quality": quality,
            "cost": float(self._spent[env] / table.full[row]),
            "correct": bool(table.correct[row, column]),
            "prob": float(table.prob[row, column]),
            "episode": {"r": float(self._return[env]), "l": int(self._steps[env])},
            "TimeLimit.truncated": False,
        }

    def set_b(self, b: float) -> None:
        """The share of the graded part from the next verdict on. Raises: ValueError outside [0, 1]."""
        check_mode(self.terms.quality, b)
        self._quality = self.table.quality(self.terms.quality, b)

    def state_dict(self) -> dict[str, Any]:
        """Where every environment stands, as plain data: `load_state_dict` goes on with the same numbers."""
        return {"seed": self.seed_of_draws, **{name: getattr(self, f"_{name}").tolist() for name in _STATE}}

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Goes on from a state; gives the observations that are due. Raises: ValueError where the sizes differ."""
        if len(state["number"]) != self.num_envs:
            raise ValueError(f"state of {len(state['number'])} environments, this one has {self.num_envs}")
        self.seed_of_draws = state["seed"]
        self._episodes_over()
        for name in _STATE:
            current = getattr(self, f"_{name}")
            setattr(self, f"_{name}", np.array(state[name], dtype=current.dtype))
        for env in range(self.num_envs):
            self._row[env], self._lam[env], self._budget[env] = self._draw(env // self.k, int(self._number[env]))
        return self._observe(np.arange(self.num_envs))


_STATE = ("number", "at", "steps", "spent", "paid", "return", "plan", "shown")
"""Arrays that, with the draws, say where every environment stands."""


def _one_stage(portfolio: Portfolio | None, table: Table) -> Portfolio:
    """The portfolio. Raises: ValueError where it may act at several stages."""
    portfolio = Portfolio.from_dict(table.meta["portfolio"]) if portfolio is None else portfolio
    if portfolio.max_active_stages != 1:
        raise ValueError(
            f"portfolio {portfolio.name!r} may act at {portfolio.max_active_stages} stages; a table answers for 1"
        )
    return portfolio


def _inside(layout: Layout, group: str) -> np.ndarray:
    """(D,) bool, the entries of a group, its seen flag first."""
    inside = np.zeros(layout.size, dtype=bool)
    inside[layout.slices[group]] = True
    return inside

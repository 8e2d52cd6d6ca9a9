"""Warm start: the policy network copies a regression cascade, at every stop and over the whole range of lambda.

The cascade's choice at a stop is softened: an action's chance grows with its predicted worth,

    worth(m, r) = max over the plans that (m, r) leads to of quality - lambda * cost
    p(r | m) ~ exp(worth(m, r) / T),   p(m) ~ exp(max over r of worth(m, r) / T),   T = temperature * (1 + lambda)

where `none` leads to every plan that acts later, and a hard budget leaves out the plans beyond it. PPO then starts near
the cascade and still explores what is close to it. The critics learn what following the cascade from that stop gave.
The copy is a rival of its own: the cascade in the form that an exported controller has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.controller.observation import HEAD, MAX_SHARE
from foveate.envs.episode import Terms
from foveate.plans.plan import STAGES
from foveate.plans.portfolio import ActionTable
from foveate.policies.learned import columns_at
from foveate.policies.network import PlanPolicy
from foveate.policies.regression import fitting
from foveate.policies.staged import Predictor
from foveate.policies.views import acts_at, looked_cost, spent_at, stops, vectors, with_head
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class WarmRecipe:
    """How the network copies.

    Args:
        epochs: passes over inputs and stops; each draws new lambdas. 0 = the network stays as it is.
        batch: observations per step; fewer on a small table, as in the regression.
        learning_rate: of AdamW, falling to 0 on a cosine.
        weight_decay: of AdamW.
        temperature: of the softened choice, in units of quality.
        noise: added to every revealed feature in training, in its standard deviations.
    """

    epochs: int = 40
    batch: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    temperature: float = 0.05
    noise: float = 0.5


def clone(
    policy: PlanPolicy,
    predictor: Predictor,
    table: Table,
    actions: ActionTable,
    terms: Terms,
    recipe: WarmRecipe | None = None,
    seed: int = 0,
) -> list[float]:
    """Trains a policy and its critics in place.

    Args:
        policy: the network.
        predictor: of quality per plan; what the cascade decides by.
        table: training inputs.
        actions: what rows and levels mean.
        terms: ranges of lambda and of hard budgets, and how many have one, as in the episodes that follow.
        recipe: how.
        seed: of lambdas and order.

    Returns:
        The mean loss of each epoch: cross-entropy in nats + squared errors of the critics.
    """
    recipe = recipe or WarmRecipe()
    cascade = _Cascade(table, predictor, actions, policy)
    optimizer = torch.optim.AdamW(policy.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    rng, rows = np.random.default_rng(seed), np.arange(table.n * len(cascade.places))
    size = fitting(recipe.batch, len(rows))
    steps = max(1, -(-len(rows) // size) * recipe.epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    policy.set_training_mode(True)
    losses = []
    for _ in range(recipe.epochs):
        lams = np.exp(rng.uniform(*np.log(terms.lam), size=len(rows)))
        budgets = rng.uniform(*terms.budget, size=len(rows))
        budgets[rng.random(len(rows)) >= terms.budget_share] = np.inf
        total = 0.0
        order = rng.permutation(rows)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            optimizer.zero_grad()
            obs, target, returns = cascade.batch(part, lams[part], budgets[part], recipe.temperature)
            obs["vector"] = obs["vector"] + torch.from_numpy(cascade.noise(part, recipe.noise, rng))
            loss = _loss(policy, obs, target, returns)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(part) / len(order)
        losses.append(total)
    return losses


def _loss(policy: PlanPolicy, obs: dict[str, Tensor], target: Tensor, returns: Tensor) -> Tensor:
    """Cross-entropy of the joint distribution over (method, ratio), and the critics' errors."""
    distribution = policy.get_distribution(obs)
    joint = distribution.method[:, :, None] + distribution.ratio
    copied = -(target * joint.clamp_min(-1e4)).sum(dim=(1, 2)).mean()
    return copied + 0.5 * F.mse_loss(policy.predict_values(obs), returns)


def _softened(worth: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """(B, M, R) p(m) p(r | m) from worths, -inf where illegal.

    The chance of a method is that of its best ratio: summed over ratios, a method with many good ones would win over a
    better one with a single ratio, such as `none`.
    """
    best = worth.max(axis=2)
    method = np.exp((best - best.max(axis=1, keepdims=True)) / temperature[:, None])
    with_any = np.where(np.isfinite(best), best, 0.0)
    ratio = np.exp((worth - with_any[:, :, None]) / temperature[:, None, None])
    ratio /= np.maximum(ratio.sum(axis=2, keepdims=True), 1e-30)
    return (method / method.sum(axis=1, keepdims=True))[:, :, None] * ratio


class _Cascade:
    """The cascade's view of every (stop, input): observations, and what it would do at any lambda and budget."""

    def __init__(self, table: Table, predictor: Predictor, actions: ActionTable, policy: PlanPolicy) -> None:
        looks = stops(table.plans)
        layout, views = policy.standard.layout, list(dict.fromkeys(looks.values()))
        seen = {groups: vectors(table, layout, groups) for groups in views}
        predicted = {groups: predictor.predict(table, groups) for groups in views}
        self.table, self.cost = table, predictor.cost
        acts = np.array([acts_at(plan) for plan in table.plans])
        self.places = np.array([STAGES.index(stage) for stage in looks])
        self.columns = np.stack([columns_at(table, actions, stage) for stage in looks])
        # before every stop, so never open: plans that the portfolio lacks (the table always holds the blind one)
        self.acts = np.where(np.isin(np.arange(table.p), self.columns), acts, -1)
        self.spent = np.stack([spent_at(table, stage) for stage in looks])
        self.x = np.stack(
            [with_head(seen[looks[stage]].copy(), stage, 1.0, self.spent[i]) for i, stage in enumerate(looks)]
        )
        # of the revealed features, (stops, D)
        self.scale = np.stack([policy.standard.scale * layout.revealed(x[0]) for x in self.x])
        self.quality = np.stack([predicted[groups] for groups in looks.values()])
        known = [looks[stage] for stage in looks]  # a plan is charged what was looked at up to where it acts
        features = [looked_cost(table, known[min(np.searchsorted(self.places, at), len(known) - 1)]) for at in acts]
        self.price = table.share + np.array(features) / table.full[:, None]

    def batch(
        self, rows: np.ndarray, lams: np.ndarray, budgets: np.ndarray, temperature: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Observations, target distributions (B, M, R) and returns (B, 2) of flat (stop, input) rows.

        Args:
            rows: (B,) stop * N + input.
            lams: (B,) trade-off weights.
            budgets: (B,) shares, infinite = none; one that nothing from this stop on can keep is dropped.
            temperature: of the softened choice.
        """
        stop, row = np.divmod(rows, self.table.n)
        open_ = self.acts >= self.places[stop][:, None]
        price = self.price[row]
        budgets = np.where((open_ & (price <= budgets[:, None])).any(axis=1), budgets, np.inf)
        open_ &= price <= budgets[:, None]
        worth = np.where(open_, self.quality[stop, row] - lams[:, None] * self.cost, -np.inf)
        columns = self.columns[stop]
        here = np.take_along_axis(worth, columns.reshape(len(rows), -1).clip(0), axis=1).reshape(columns.shape)
        here[columns < 0] = -np.inf
        here[:, 0, 0] = np.where(self.acts > self.places[stop][:, None], worth, -np.inf).max(axis=1)
        target = _softened(here, temperature * (1 + lams))
        plan = self._followed(stop, row, lams, open_)
        returns = np.stack([self.table.correct[row, plan], self.table.share[row, plan]], axis=1)
        obs = {"vector": self._observed(stop, row, lams, budgets), "mask": np.isfinite(here).astype(np.float32)}
        tensors = {name: torch.from_numpy(array) for name, array in obs.items()}
        return tensors, torch.from_numpy(target.astype(np.float32)), torch.from_numpy(returns.astype(np.float32))

    def noise(self, rows: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
        """(B, D) float32 for the revealed features of flat (stop, input) rows."""
        drawn = rng.normal(size=(len(rows), self.scale.shape[1])) * size * self.scale[rows // self.table.n]
        return drawn.astype(np.float32)

    def _observed(self, stop: np.ndarray, row: np.ndarray, lams: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        x = self.x[stop, row]
        x[:, HEAD.index("log_lambda")] = np.log10(lams) / 2
        x[:, HEAD.index("has_budget")] = np.isfinite(budgets)
        x[:, HEAD.index("budget_left")] = np.clip(budgets - self.spent[stop, row], 0, MAX_SHARE)
        return x

    def _followed(self, stop: np.ndarray, row: np.ndarray, lams: np.ndarray, open_: np.ndarray) -> np.ndarray:
        """(B,) the plan that the cascade ends with when it goes on from a stop where nothing was done yet."""
        plan = np.zeros(len(row), np.int64)
        waiting = np.ones(len(row), bool)
        for i, place in enumerate(self.places):
            legal = open_ & (self.acts >= place)
            best = np.where(legal, self.quality[i, row] - lams[:, None] * self.cost, -np.inf).argmax(axis=1)
            taken = waiting & (stop <= i) & (self.acts[best] == place)
            plan[taken] = best[taken]
            waiting &= ~taken
        return plan

"""Warm start: the policy network copies a regression cascade, at every stop and over the whole range of lambda.

The cascade's choice at a stop is softened: an action's chance grows with its predicted worth,

    worth(action) = max over the plans it leads to of quality - lambda * cost;   p ~ exp(worth / (temperature * (1 + lambda)))

where `none` leads to every plan that acts later. PPO then starts near the cascade and still explores what is close to
it. The critics learn what following the cascade from that stop gave. The copy is a rival of its own: the cascade in the
form that an exported controller has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.plans.plan import STAGES
from foveate.plans.portfolio import ActionTable
from foveate.policies.learned import columns_at
from foveate.policies.network import PlanPolicy
from foveate.policies.staged import Predictor
from foveate.policies.views import acts_at, spent_at, stops, vectors, with_head
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class WarmRecipe:
    """How the network copies.

    Args:
        epochs: passes over inputs and stops; each draws new lambdas.
        batch: observations per step.
        learning_rate: of Adam, falling to 0 on a cosine.
        temperature: of the softened choice, in units of quality.
    """

    epochs: int = 40
    batch: int = 1024
    learning_rate: float = 3e-3
    temperature: float = 0.02


def clone(
    policy: PlanPolicy,
    predictor: Predictor,
    table: Table,
    actions: ActionTable,
    lam: tuple[float, float],
    recipe: WarmRecipe | None = None,
    seed: int = 0,
) -> list[float]:
    """Trains a policy and its critics in place.

    Args:
        policy: the network.
        predictor: of quality per plan; what the cascade decides by.
        table: training inputs.
        actions: what rows and levels mean.
        lam: range of the log-uniform lambdas.
        recipe: how.
        seed: of lambdas and order.

    Returns:
        The mean loss of each epoch: cross-entropy in nats + squared errors of the critics.
    """
    recipe = recipe or WarmRecipe()
    cascade = _Cascade(table, predictor, actions, policy)
    optimizer = torch.optim.Adam(policy.parameters(), recipe.learning_rate)
    rng, rows = np.random.default_rng(seed), np.arange(table.n * len(cascade.looks))
    steps = -(-len(rows) // recipe.batch) * recipe.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    policy.set_training_mode(True)
    losses = []
    for _ in range(recipe.epochs):
        lams = np.exp(rng.uniform(*np.log(lam), size=len(rows)))
        total = 0.0
        order = rng.permutation(rows)
        for start in range(0, len(order), recipe.batch):
            part = order[start : start + recipe.batch]
            optimizer.zero_grad()
            loss = _loss(policy, *cascade.batch(part, lams[part], recipe.temperature))
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


class _Cascade:
    """The cascade's view of every (stop, input): observations, and what it would do at any lambda."""

    def __init__(self, table: Table, predictor: Predictor, actions: ActionTable, policy: PlanPolicy) -> None:
        self.table, self.looks = table, list(stops(table.plans).items())
        layout = policy.standard.layout
        self.cost = predictor.cost
        self.acts = np.array([acts_at(plan) for plan in table.plans])
        self.columns = np.stack([columns_at(table, actions, stage) for stage, _ in self.looks])
        views = {groups: vectors(table, layout, groups) for _, groups in self.looks}
        predicted = {groups: predictor.predict(table, groups) for groups in views}
        self.x = np.stack(
            [with_head(views[groups].copy(), stage, 1.0, spent_at(table, stage)) for stage, groups in self.looks]
        )
        self.quality = np.stack([predicted[groups] for _, groups in self.looks])
        self.log_lambda = layout.names.index("log_lambda")

    def batch(
        self, rows: np.ndarray, lams: np.ndarray, temperature: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Observations, target distributions (B, M, R) and returns (B, 2) of flat (stop, input) rows at given lambdas."""
        stop, row = np.divmod(rows, self.table.n)
        x = self.x[stop, row]
        x[:, self.log_lambda] = np.log10(lams) / 2
        columns = self.columns[stop]
        worth = self.quality[stop, row] - lams[:, None] * self.cost
        here = np.take_along_axis(worth, columns.reshape(len(rows), -1).clip(0), axis=1).reshape(columns.shape)
        places = np.array([STAGES.index(stage) for stage, _ in self.looks])
        here[:, 0, 0] = np.where(self.acts > places[stop][:, None], worth, -np.inf).max(axis=1)
        scaled = np.where(columns >= 0, here, -np.inf) / (temperature * (1 + lams))[:, None, None]
        target = np.exp(scaled - scaled.max(axis=(1, 2), keepdims=True))
        target /= target.sum(axis=(1, 2), keepdims=True)
        plan = self._followed(stop, row, lams, places)
        returns = np.stack([self.table.correct[row, plan], self.table.share[row, plan]], axis=1)
        obs = {"vector": torch.from_numpy(x), "mask": torch.from_numpy(columns >= 0).float()}
        return obs, torch.from_numpy(target.astype(np.float32)), torch.from_numpy(returns.astype(np.float32))

    def _followed(self, stop: np.ndarray, row: np.ndarray, lams: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(B,) the plan that the cascade ends with when it goes on from a stop where nothing was done yet."""
        plan = np.zeros(len(row), np.int64)
        waiting = np.ones(len(row), bool)
        for i, place in enumerate(places):
            worth = np.where(self.acts >= place, self.quality[i, row] - lams[:, None] * self.cost, -np.inf)
            best = worth.argmax(axis=1)
            taken = waiting & (stop <= i) & (self.acts[best] == place)
            plan[taken] = best[taken]
            waiting &= ~taken
        return plan

"""Rollouts of groups, and the group advantage.

Rollouts of one group share (input, lambda, budget). Two of them that stand before the very same observation are in the
same state, so what the others went on to get from there estimates this state's value without a network:

    baseline = (sum of the others' return to come + w * critic) / (number of others + w)
    A_q, A_c = own quality, cost to come - baseline
    A        = (A_q - lambda * A_c) / (1 + lambda) / rms

`w` weighs the critic as so many rollouts; it is all there is where nobody else got here. Neither part depends on
the own action, so the gradient stays unbiased. `rms` is one running root mean square over all updates: a group's own
deviation would blow up the cost differences of groups in which everybody is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from foveate.controller.observation import HEAD
from foveate.plans.plan import STAGES

_LAMBDA = HEAD.index("log_lambda")


class Batch(NamedTuple):
    """A part of the usable steps; B rows."""

    observations: dict[str, Tensor]
    actions: Tensor  # (B, 2)
    old_log_prob: Tensor  # (B,)
    advantages: Tensor  # (B,) scaled
    returns: Tensor  # (B, 2) quality and cost to come


@dataclass
class RunningScale:
    """Root mean square of all advantages so far, older updates fading.

    Attributes:
        square: faded sum of mean squares. weight: faded sum of ones. fade: per update.
    """

    square: float = 0.0
    weight: float = 0.0
    fade: float = 0.95

    def update(self, values: np.ndarray) -> float:
        """Takes one update's raw advantages in and gives the scale for them."""
        self.square = self.fade * self.square + float(np.mean(np.square(values, dtype=np.float64)))
        self.weight = self.fade * self.weight + 1.0
        return max((self.square / self.weight) ** 0.5, 1e-6)


class GroupBuffer:
    """Steps of `n_envs` rollouts, in the shape that SB3's PPO builds its buffer.

    Args:
        buffer_size: steps T per rollout.
        observation_space: Dict of "vector" and "mask". action_space: MultiDiscrete([M, R]).
        device: of the batches.
        gae_lambda, gamma: SB3 passes them; gamma must be 1, the other is not used.
        n_envs: rollouts side by side, E.
        critic_weight: w above.
        longest: most steps of an episode.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.MultiDiscrete,
        device: Any = "cpu",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        critic_weight: float = 1.0,
        longest: int = len(STAGES),
    ) -> None:
        if gamma != 1.0:
            raise ValueError(f"gamma = {gamma}: the reward of a plan is not discounted, gamma must be 1")
        if buffer_size < longest:
            raise ValueError(f"n_steps = {buffer_size} is below the longest episode, {longest} steps")
        self.buffer_size, self.n_envs, self.longest = buffer_size, n_envs, longest
        self.critic_weight, self.device, self.scale = critic_weight, device, RunningScale()
        self._shapes = {name: (space.shape, space.dtype) for name, space in observation_space.spaces.items()}
        self.reset()

    def reset(self) -> None:
        """Forgets the steps, not the scale."""
        lead = (self.buffer_size, self.n_envs)
        self.observations = {k: np.zeros(lead + shape, dtype) for k, (shape, dtype) in self._shapes.items()}
        self.actions = np.zeros((*lead, 2), np.int64)
        self.log_probs = np.zeros(lead, np.float32)
        self.values = np.zeros((*lead, 2), np.float32)
        self.terms = np.zeros((*lead, 2), np.float64)  # quality and cost of each step
        self.groups = np.zeros(lead, np.int64)
        self.dones = np.zeros(lead, bool)
        self.pos = 0

    def add(
        self,
        observations: dict[str, np.ndarray],
        actions: Tensor,
        values: Tensor,
        log_probs: Tensor,
        terms: np.ndarray,
        groups: np.ndarray,
        dones: np.ndarray,
    ) -> None:
        """One step of every rollout.

        Args:
            observations: before the step.
            actions: (E, 2) method row and ratio level.
            values: (E, 2) of the critics.
            log_probs: (E,) of the actions.
            terms: (E, 2) quality and cost share that the step brought; all of an episode's may come with its last one.
            groups: (E,) int64, read where an episode ends.
            dones: (E,) bool.
        """
        for name, array in self.observations.items():
            array[self.pos] = observations[name]
        self.actions[self.pos], self.log_probs[self.pos] = actions.cpu().numpy(), log_probs.cpu().numpy()
        self.values[self.pos], self.terms[self.pos] = values.cpu().numpy(), terms
        self.groups[self.pos], self.dones[self.pos] = groups, dones
        self.pos += 1

    def finish(self) -> dict[str, float]:
        """Works out returns and advantages. Returns: means over the usable steps and episodes, for the log."""
        if not np.isfinite(self.terms).all():
            raise ValueError("rollout: a quality or a cost is not a number")
        usable, returns, groups = self._usable(), self._to_come(), self._groups()
        self.rows = np.flatnonzero(usable.reshape(-1))
        vectors = self.observations["vector"].reshape(-1, self.observations["vector"].shape[-1])[self.rows]
        returns, values = returns.reshape(-1, 2)[self.rows], self.values.reshape(-1, 2)[self.rows].astype(np.float64)
        state = _states(groups.reshape(-1)[self.rows], vectors)
        a = returns - baseline(state, returns, values, self.critic_weight)
        lam = 10.0 ** (2.0 * vectors[:, _LAMBDA].astype(np.float64))
        raw = (a[:, 0] - lam * a[:, 1]) / (1 + lam)
        scale = self.scale.update(raw)
        self.advantages, self.returns = (raw / scale).astype(np.float32), returns.astype(np.float32)
        started = usable & self._starts()
        total = self._to_come()[started]
        spread = returns.var(axis=0)
        explained = 1 - (returns - values).var(axis=0) / np.where(spread > 0, spread, np.nan)
        return {
            "rollout/quality": float(total[:, 0].mean()),
            "rollout/cost_share": float(total[:, 1].mean()),
            "rollout/stages_per_episode": float(usable.sum() / started.sum()),
            "rollout/alone_share": float((np.bincount(state)[state] == 1).mean()),
            "train/advantage_rms": scale,
            "train/explained_variance_quality": float(explained[0]),
            "train/explained_variance_cost": float(explained[1]),
        }

    def get(self, batch_size: int) -> Iterator[Batch]:
        """The usable steps once, shuffled by torch's generator."""
        for part in torch.randperm(len(self.rows)).split(batch_size):
            part = part.numpy()
            rows = self.rows[part]
            flat = {k: v.reshape(-1, *v.shape[2:])[rows] for k, v in self.observations.items()}
            arrays = (self.actions.reshape(-1, 2)[rows], self.log_probs.reshape(-1)[rows])
            arrays += (self.advantages[part], self.returns[part])
            tensors = [torch.from_numpy(array).to(self.device) for array in arrays]
            yield Batch({k: torch.from_numpy(v).to(self.device) for k, v in flat.items()}, *tensors)

    def _starts(self) -> np.ndarray:
        """(T, E) bool: first steps of episodes; a rollout starts fresh."""
        return np.concatenate([np.ones((1, self.n_envs), bool), self.dones[:-1]])

    def _usable(self) -> np.ndarray:
        """(T, E) bool: steps of episodes that started early enough to end in here whatever they do.

        Keeping those that happened to end would favour plans that act early.
        """
        place = np.where(self._starts(), np.arange(self.buffer_size)[:, None], 0)
        started = np.maximum.accumulate(place, axis=0)
        ended = np.zeros((self.buffer_size + 1, self.n_envs), bool)
        for t in reversed(range(self.buffer_size)):
            ended[t] = self.dones[t] | ended[t + 1]
        usable = started <= self.buffer_size - self.longest
        if (usable & ~ended[:-1]).any():
            raise ValueError(f"rollout: an episode took more than {self.longest} steps")
        return usable

    def _groups(self) -> np.ndarray:
        """(T, E) int64: the group of each step's episode, which its last step names."""
        out = self.groups.copy()
        for t in reversed(range(self.buffer_size - 1)):
            out[t] = np.where(self.dones[t], out[t], out[t + 1])
        return out

    def _to_come(self) -> np.ndarray:
        """(T, E, 2) quality and cost from each step to the end of its episode."""
        out, later = np.zeros_like(self.terms), np.zeros((self.n_envs, 2))
        for t in reversed(range(self.buffer_size)):
            later = self.terms[t] + np.where(self.dones[t][:, None], 0.0, later)
            out[t] = later
        return out


def baseline(state: np.ndarray, returns: np.ndarray, values: np.ndarray, critic_weight: float) -> np.ndarray:
    """(S, 2) leave-one-out mean over the same state, the critic counting as `critic_weight` rollouts.

    Args:
        state: (S,) int64, equal where group and observation are.
        returns: (S, 2) what came.
        values: (S, 2) what the critics said would come.
        critic_weight: w >= 0; where nobody else is in the state, the critic alone.
    """
    count = np.bincount(state).astype(np.float64)[state] - 1
    sums = np.stack([np.bincount(state, returns[:, i])[state] for i in range(2)], axis=1) - returns
    weight = np.where(count > 0, critic_weight, 1.0)
    return (sums + weight[:, None] * values) / (count + weight)[:, None]


def _states(groups: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(S,) int64 numbers, equal where group and observation are equal: by a 64-bit hash of the observation's bytes."""
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(0, 2**63, size=words.shape[1] + 1, dtype=np.uint64) | np.uint64(1)
    key = words @ odd[:-1] + groups.astype(np.uint64) * odd[-1]
    return np.unique(key, return_inverse=True)[1].reshape(-1)

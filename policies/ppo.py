"""PPO whose advantage compares rollouts of one input with each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from foveate.policies.buffer import Batch, GroupBuffer
from foveate.policies.network import PlanPolicy

Decay = Callable[[float], float]


def falling(start: float, end: float = 0.0) -> Decay:
    """A schedule for SB3, linear from `start` to `end` over the training."""
    return lambda left: end + (start - end) * left


class GroupPPO(PPO):
    """stable-baselines3's PPO with a group advantage, two critics and masked two-head actions.

    Paper:   Schulman et al. 2017, https://arxiv.org/abs/1707.06347 (clipped surrogate); Kool et al. 2019, "Buy 4
             REINFORCE samples, get a baseline for free!" (leave-one-out baseline of a group)
    Differs: from SB3's PPO: advantage as in `buffer.py`, no discount, no normalisation per minibatch. Every update
             starts from a fresh, reseeded environment, so that it is a function of (weights, optimizer, seed, number
             of the update) alone and a resumed run continues the same numbers.

    The environment's infos carry, at the latest where an episode ends, "quality", "cost" (share of the uncompressed
    pass) and "group" (equal for rollouts that share input, lambda and budget); observations are as `PlanPolicy` reads
    them, lambda included.

    Args:
        env: the environment.
        policy_kwargs: of `PlanPolicy`.
        learning_rate: a number, or a schedule such as `falling(1e-3)`.
        n_steps: steps of each rollout per update.
        batch_size: steps per gradient step.
        n_epochs: passes over the steps of one update.
        clip_range: of the probability ratio.
        ent_coef: weight of the entropy bonus at the start; it falls to 0 with the training.
        vf_coef: weight of the critics' squared errors.
        target_kl: the epochs of an update end where the policy has moved 1.5 times as far, in nats.
        critic_weight: see `buffer.py`.
        anchor_coef: weight of the KL divergence from the policy given to `set_anchor`, in nats per decision; it keeps
            a warm start from being forgotten for what is luck of the training inputs.
        seed: of weights, actions, minibatches and the environment.
        kwargs: SB3's own (`device`, `verbose`, `tensorboard_log`).
    """

    def __init__(
        self,
        env: VecEnv,
        *,
        policy_kwargs: Mapping[str, Any] | None = None,
        learning_rate: float | Decay = 1e-3,
        n_steps: int = 36,
        batch_size: int = 1024,
        n_epochs: int = 4,
        clip_range: float = 0.2,
        ent_coef: float = 0.01,
        vf_coef: float = 0.5,
        target_kl: float | None = 0.02,
        critic_weight: float = 1.0,
        anchor_coef: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            PlanPolicy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=n_steps * env.num_envs,  # SB3 warns unless it divides this; here the last one may be smaller
            n_epochs=n_epochs,
            gamma=1.0,
            clip_range=clip_range,
            normalize_advantage=False,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            target_kl=target_kl,
            rollout_buffer_class=GroupBuffer,
            rollout_buffer_kwargs={"critic_weight": critic_weight},
            policy_kwargs=dict(policy_kwargs or {}),
            seed=seed,
            **{"device": "cpu"} | kwargs,
        )
        self.batch_size = batch_size
        self.anchor_coef, self.anchor = anchor_coef, None

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.num_timesteps // (self.n_steps * self.n_envs)

    def set_anchor(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The policy that `anchor_coef` holds on to, by its weights; it does not move."""
        with torch.random.fork_rng(devices=[]):
            spaces = (self.observation_space, self.action_space)
            self.anchor = PlanPolicy(*spaces, self.lr_schedule, **self.policy_kwargs).to(self.device)
        self.anchor.load_state_dict(weights)
        self.anchor.requires_grad_(False).set_training_mode(False)

    def collect_rollouts(self, env: VecEnv, callback: Any, rollout_buffer: GroupBuffer, n_rollout_steps: int) -> bool:
        """Fills the buffer from a reseeded environment. Returns: False where a callback asked to stop."""
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        seed = int(np.random.SeedSequence([self.seed or 0, self.update]).generate_state(1)[0] >> 1)
        torch.manual_seed(seed)
        env.seed(seed)
        obs = env.reset()
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                actions, values, log_probs = self.policy(obs_as_tensor(obs, self.device))
            after, _, dones, infos = env.step(actions.cpu().numpy())
            terms = np.array([(info.get("quality", 0.0), info.get("cost", 0.0)) for info in infos], np.float64)
            groups = np.array([info.get("group", -1) for info in infos], np.int64)
            rollout_buffer.add(obs, actions, values, log_probs, terms, groups, dones)
            obs = after
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        for name, value in rollout_buffer.finish().items():
            self.logger.record(name, value)
        self._last_obs, self._last_episode_starts = obs, dones
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """One update: epochs of clipped steps on the buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        logs: dict[str, list[float]] = {}
        epochs = 0
        for _ in range(self.n_epochs):
            if not all(self._step(batch, logs) for batch in self.rollout_buffer.get(self.batch_size)):
                break
            epochs += 1
        self._n_updates += epochs
        for name, values in logs.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/epochs", epochs)
        self.logger.record("train/ent_coef", self._entropy_weight())

    def _entropy_weight(self) -> float:
        return self.ent_coef * max(self._current_progress_remaining, 0.0)

    def _step(self, batch: Batch, logs: dict[str, list[float]]) -> bool:
        """One gradient step. Returns: False, and changes nothing, where the policy has moved too far already."""
        values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
        log_ratio = log_prob - batch.old_log_prob
        ratio, clip = log_ratio.exp(), self.clip_range(self._current_progress_remaining)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        policy_loss = -torch.min(batch.advantages * ratio, batch.advantages * clipped).mean()
        value_loss = F.mse_loss(values, batch.returns)
        loss = policy_loss + self.vf_coef * value_loss - self._entropy_weight() * entropy.mean()
        away = self._away(batch)
        loss = loss + self.anchor_coef * away
        with torch.no_grad():
            kl = float((ratio - 1 - log_ratio).mean())
        found = {
            "policy_loss": float(policy_loss.detach()),
            "value_loss": float(value_loss.detach()),
            "entropy": float(entropy.detach().mean()),
            "approx_kl": kl,
            "anchor_kl": float(away.detach()),
            "clip_fraction": float(((ratio.detach() - 1).abs() > clip).float().mean()),
        }
        for name, value in found.items():
            logs.setdefault(name, []).append(value)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"update {self.update}: the loss is not finite; the weights are as before")
        if self.target_kl is not None and kl > 1.5 * self.target_kl:
            return False
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return True

    def _away(self, batch: Batch) -> torch.Tensor:
        """Mean KL divergence of the policy from the anchor; 0 without one."""
        if self.anchor is None or not self.anchor_coef:
            return torch.zeros(())
        mine = self.policy.action_dist  # as `evaluate_actions` has left it
        with torch.no_grad():
            theirs = self.anchor.get_distribution(batch.observations)
        return mine.divergence(theirs).mean()

    def checkpoint(self, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
        """Writes weights, optimizer, scale and counters, whole or not at all; no code is in the file.

        Args:
            path: the file.
            extra: tensors, numbers and texts in dicts and lists that `restore` gives back.
        """
        scale = self.rollout_buffer.scale
        state = {
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "scale": {"square": scale.square, "weight": scale.weight},
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            "seed": self.seed,
            "extra": dict(extra or {}),
        }
        part = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.part")
        torch.save(state, part)
        os.replace(part, path)

    def restore(self, path: str | Path) -> dict[str, Any]:
        """Takes up a checkpoint; go on with `learn(..., reset_num_timesteps=False)` for the rest of the steps.

        Returns:
            The checkpoint's `extra`.

        Raises:
            ValueError: the file cannot be read, is no checkpoint, or is one of another network; the message names it.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.policy.load_state_dict(state["policy"])
            self.policy.optimizer.load_state_dict(state["optimizer"])
            scale, self.seed = self.rollout_buffer.scale, state["seed"]
            scale.square, scale.weight = state["scale"]["square"], state["scale"]["weight"]
            self.num_timesteps, self._n_updates = state["num_timesteps"], state["n_updates"]
            return state["extra"]
        except FileNotFoundError:
            raise
        except Exception as error:  # torch raises what it likes on a damaged file
            raise ValueError(f"{path}: not a checkpoint of this policy: {str(error).splitlines()[0]}") from error

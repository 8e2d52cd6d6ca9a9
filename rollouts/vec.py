"""BatchVecEnv: many episodes in this process, in shards whose requests share forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.rollouts.common import Observation, SharedVecEnv
from foveate.rollouts.shard import Setup, Shard

if TYPE_CHECKING:
    from foveate.models.host import Host

Step = tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]


class BatchVecEnv(SharedVecEnv):
    """The episodes of `CompressionEnv`, many at a time on one host.

    Environments g * k .. g * k + k - 1 are the rollouts of group g: in episode number e all of them get the same input,
    lambda and budget. `infos[i]` is empty within an episode; at its end it holds what `CompressionEnv` tells, and
    group, number, `episode` ({"r": return, "l": steps}), `terminal_observation` and `TimeLimit.truncated`.

    Args:
        setup: what episodes are made from.
        host: an opened model.
    """

    def __init__(self, setup: Setup, host: Host) -> None:
        self.shards = [Shard(setup, host, index) for index in range(setup.shards)]
        self._start(setup)

    def _start(self, setup: Setup) -> None:
        self.setup = setup
        self.render_mode = None
        super().__init__(setup.groups * setup.k, *setup.spaces())

    def _every(self, method: str, arguments: Sequence[tuple] | None = None) -> list[Any]:
        """One call of each shard's method, results in order."""
        arguments = arguments or [()] * len(self.shards)
        return [getattr(shard, method)(*each) for shard, each in zip(self.shards, arguments, strict=True)]

    def reset(self) -> Observation:
        """Every environment begins an episode; after `seed(s)` from the first one of that seed."""
        seed = self._seeds[0]
        if seed is not None:
            self._every("reseed", [(seed,)] * self.setup.shards)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._shown(self._every("reset", [(seed is not None,)] * self.setup.shards))

    def _shown(self, parts: Sequence[Observation]) -> Observation:
        """Observations of the shards, one after the other; their masks are kept, to check the next actions."""
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._masks = found["mask"].copy()
        return found

    def _check(self, actions: np.ndarray) -> None:
        """Refuses illegal actions before any shard has acted. Raises: ValueError."""
        if actions.shape != (self.num_envs, 2):
            raise ValueError(f"actions: need whole numbers ({self.num_envs}, 2), got shape {actions.shape}")
        inside = (actions == np.floor(actions)) & (actions >= 0) & (actions < self._masks.shape[1:])
        m, r = np.where(inside.all(axis=1, keepdims=True), actions, 0).astype(np.intp).T
        legal = inside.all(axis=1) & (self._masks[np.arange(self.num_envs), m, r] == 1)
        if not legal.all():
            self._every("check", [(each,) for each in np.split(actions, self.setup.shards)])  # says which and why

    def step_async(self, actions: np.ndarray) -> None:
        """Takes one action (m, r) for each environment."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> Step:
        """The step. Raises: ValueError on an action that is not legal."""
        self._check(self._actions)
        parts = self._every("step", [(each,) for each in np.split(self._actions, self.setup.shards)])
        observations, rewards, dones, infos = zip(*parts, strict=True)
        told = [info for part in infos for info in part]
        return self._shown(observations), np.concatenate(rewards), np.concatenate(dones), told

    def set_b(self, b: float) -> None:
        """The share of the graded part from the next verdict on. Raises: ValueError outside [0, 1]."""
        self._every("set_b", [(b,)] * self.setup.shards)

    def state_dict(self) -> dict[str, Any]:
        """Where every environment stands between two steps, as plain data: `load_state_dict` goes on from it."""
        return {"shards": self._every("state")}

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Goes on from a state; gives the observations that are due. Raises: ValueError where the sizes differ."""
        if len(state["shards"]) != self.setup.shards:
            raise ValueError(f"state of {len(state['shards'])} shards, this one has {self.setup.shards}")
        return self._shown(self._every("restore", [(each,) for each in state["shards"]]))

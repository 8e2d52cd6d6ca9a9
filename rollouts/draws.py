"""How episodes are drawn: a pure function of (seed, group, number), so that any worker can begin any episode again."""

from __future__ import annotations

import numpy as np


def episode_rng(seed: int, group: int, number: int) -> np.random.Generator:
    """The generator that draws input, lambda and budget of one episode of one group of rollouts."""
    return np.random.default_rng(np.random.SeedSequence([seed, group, number]))


def group_id(group: int, number: int, groups: int) -> int:
    """One whole number for what the rollouts of a group share: episodes with equal id compare with each other."""
    return number * groups + group

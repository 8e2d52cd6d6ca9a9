"""Numbers of one training by the recipe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

PARTS = ("features", "answers")
"""Stages of the recipe."""


@dataclass(frozen=True)
class Settings:
    """One run.

    Args:
        steps_a: of the stage "features".
        steps_b: of the stage "answers".
        batch: rows of a step.
        seed: of the network's first weights and of all that is drawn.
        held_out: rows that judge the result.
        save_every: steps between checkpoints.
        rate: on the method's own learning rates; more than 1 where a network is far smaller than the paper's.
    Raises:
        ValueError: a number out of range.
    """

    steps_a: int = 1000
    steps_b: int = 2000
    batch: int = 32
    seed: int = 0
    held_out: int = 128
    save_every: int = 100
    rate: float = 1.0

    def __post_init__(self) -> None:
        lowest = {"steps_a": 0, "steps_b": 0, "batch": 1, "seed": 0, "held_out": 1, "save_every": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate: {self.rate} is not above 0")
        if self.steps_a + self.steps_b < 1:
            raise ValueError("steps_a and steps_b: are both 0, nothing would be learnt")


def settings_of(**numbers: float | None) -> Settings:
    """Settings with the numbers that are given; None = as they are by default."""
    return Settings(**{**asdict(Settings()), **{name: value for name, value in numbers.items() if value is not None}})

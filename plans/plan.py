"""A plan: for each stage a compressor, or `none`, and a keep ratio. Plain data, hashable, JSON both ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any

STAGES: tuple[str, ...] = ("input", "encoder", "outside", "projector", "prefill", "decode")
"""Where a decision can be taken, in data-flow order."""


def near(name: object, known: Iterable[str]) -> str:
    """The known names that resemble `name`, or all of them where none does: the tail of an error message."""
    known = list(known)
    return ", ".join(get_close_matches(str(name), known, n=3) or known) or "nothing is known here"


def stage_index(stage: str) -> int:
    """The place of a stage in data-flow order. Raises: ValueError on an unknown stage, listing near names."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; near: {near(stage, STAGES)}")
    return STAGES.index(stage)


def keep_count(n: int, keep_ratio: float) -> int:
    """Tokens kept of n: max(1, round(n * keep_ratio)), where an exact half goes to the even number.

    Args:
        n: tokens that enter, at least 1.
        keep_ratio: share that stays, in (0, 1].
    Raises:
        ValueError: an argument is outside its range.
    """
    if n < 1:
        raise ValueError(f"n = {n} tokens is below 1")
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio = {keep_ratio} is outside (0, 1]")
    return max(1, round(n * keep_ratio))


@dataclass(frozen=True)
class Choice:
    """One stage's decision. Keep ratio 1 is `none` whichever method was named: equal behaviour is one value.

    Args:
        method: a compressor's name, "none", or "blind" (no visual token at all).
        keep: tokens that leave the stage / tokens that enter it, in (0, 1]; 0 for "blind" and for it alone.
    Raises:
        ValueError: `keep` does not fit the method.
    """

    method: str = "none"
    keep: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise ValueError(f"method = {self.method!r} is not a name")
        if isinstance(self.keep, bool) or not isinstance(self.keep, Real) or not math.isfinite(self.keep):
            raise ValueError(f"{self.method}: keep = {self.keep!r} is not a number")
        object.__setattr__(self, "keep", float(self.keep))
        if self.method == "blind":
            if self.keep != 0:
                raise ValueError(f"blind: keep = {self.keep} must be 0, since it leaves no visual token")
        elif not 0 < self.keep <= 1:
            raise ValueError(f"{self.method}: keep = {self.keep} is outside (0, 1]")
        elif self.method == "none" and self.keep != 1:
            raise ValueError(f"none: keep = {self.keep} must be 1, since it touches nothing")
        elif self.keep == 1:
            object.__setattr__(self, "method", "none")

    @property
    def is_none(self) -> bool:
        """Whether the stage is left untouched."""
        return self.method == "none"


NONE = Choice()
"""The choice that is always legal: leave the stage untouched."""


@dataclass(frozen=True)
class Plan:
    """Six choices in stage order; `Plan()` compresses nothing.

    Raises:
        ValueError: not six choices, `blind` elsewhere than at `input`, or something planned for the tokens that `blind`
            removed.
    """

    choices: tuple[Choice, ...] = (NONE,) * len(STAGES)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) != len(STAGES) or not all(isinstance(choice, Choice) for choice in self.choices):
            raise ValueError(f"a plan is {len(STAGES)} choices ({', '.join(STAGES)}); got {self.choices!r}")
        for stage, choice in self.active[1 if self.is_blind else 0 :]:
            if self.is_blind:
                raise ValueError(f"{stage}: {choice.method} has no visual token to act on in a blind plan")
            if choice.method == "blind":
                raise ValueError(f"{stage}: blind is a choice at input only")

    @classmethod
    def of(cls, **stages: Choice | tuple[str, float]) -> Plan:
        """A plan from its active stages: `Plan.of(outside=("visionzip", 0.25))`. Raises: ValueError."""
        choices = [NONE] * len(STAGES)
        for stage, choice in stages.items():
            choices[stage_index(stage)] = choice if isinstance(choice, Choice) else Choice(*choice)
        return cls(tuple(choices))

    def __getitem__(self, stage: str) -> Choice:
        return self.choices[stage_index(stage)]

    def replace(self, stage: str, choice: Choice) -> Plan:
        """The same plan with another choice at one stage."""
        index = stage_index(stage)
        if self.choices[index] == choice:
            return self
        return Plan(self.choices[:index] + (choice,) + self.choices[index + 1 :])

    @property
    def active(self) -> tuple[tuple[str, Choice], ...]:
        """(stage, choice) wherever something is done, in stage order."""
        return tuple((stage, choice) for stage, choice in zip(STAGES, self.choices, strict=True) if not choice.is_none)

    @property
    def is_blind(self) -> bool:
        """Whether no visual token reaches the decoder."""
        return self.choices[0].method == "blind"

    def label(self) -> str:
        """Short text: "outside:visionzip@0.25 + prefill:fastv@0.5", "none" or "blind"."""
        if self.is_blind:
            return "blind"
        return " + ".join(f"{stage}:{choice.method}@{choice.keep}" for stage, choice in self.active) or "none"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON form, active stages only: {"outside": {"method": "visionzip", "keep": 0.25}}."""
        return {stage: {"method": choice.method, "keep": choice.keep} for stage, choice in self.active}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`. Raises: ValueError naming the stage and what is wrong there."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a plan is a mapping from stage to method and keep; got {data!r}")
        choices = {}
        for stage, entry in data.items():
            stage_index(stage)
            if not isinstance(entry, Mapping) or set(entry) != {"method", "keep"}:
                raise ValueError(f"{stage}: a choice is {{method: name, keep: ratio}}; got {entry!r}")
            try:
                choices[stage] = Choice(**entry)
            except ValueError as error:
                raise ValueError(f"{stage}: {error}") from None
        return cls.of(**choices)


UNCOMPRESSED = Plan()
"""Nothing is compressed: the reference that costs are shares of."""

BLIND = Plan.of(input=("blind", 0.0))
"""No visual token at all: the floor."""

"""What a policy may choose from: the portfolio (a configuration) and its action table (numbers for networks)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foveate.plans.files import FieldError, find_config, parse_yaml
from foveate.plans.plan import BLIND, NONE, STAGES, UNCOMPRESSED, Choice, Plan, near, stage_index

VERSION = 1
"""Of the portfolio file."""

ANY_STAGE = "*"
"""The stage written in the action table's row 0, `none`."""


@dataclass(frozen=True)
class Portfolio:
    """The compressors and keep ratios on offer at each stage. `none` is legal everywhere and never listed.

    Args:
        name: for reports.
        choices: stage -> choices. Kept in one order (stages, then names, then falling keep ratio), so that equal
            content is equal and numbers its actions alike whatever the file's order; every stage is present.
        max_active_stages: stages at which one plan may act, 1..6.
    Raises:
        ValueError: unknown stage, `none` among the choices, a choice given twice, `blind` elsewhere than at `input`,
            nothing on offer.
    """

    name: str
    choices: Mapping[str, tuple[Choice, ...]]
    max_active_stages: int = 2

    def __post_init__(self) -> None:
        for stage, choices in self.choices.items():
            stage_index(stage)
            for choice in choices:
                if choice.is_none:
                    raise ValueError(f"{stage}: none (keep 1) is always legal and not listed")
                Plan.of(**{stage: choice})
                if list(choices).count(choice) > 1:
                    raise ValueError(f"{stage}: {choice.method} at keep {choice.keep} is given twice")
        if not any(self.choices.values()):
            raise ValueError(f"portfolio {self.name!r} offers no choice at any stage")
        if self.max_active_stages not in range(1, len(STAGES) + 1):
            raise ValueError(f"max_active_stages = {self.max_active_stages!r} is outside 1..{len(STAGES)}")
        ordered = {s: tuple(sorted(self.choices.get(s, ()), key=lambda c: (c.method, -c.keep))) for s in STAGES}
        object.__setattr__(self, "choices", ordered)

    def to_dict(self) -> dict[str, Any]:
        """JSON and YAML form, the shape of a portfolio file; stages without a choice are left out."""
        stages: dict[str, dict[str, list[float]]] = {}
        for stage, choices in self.choices.items():
            for choice in choices:
                stages.setdefault(stage, {}).setdefault(choice.method, []).append(choice.keep)
        return {"version": VERSION, "name": self.name, "max_active_stages": self.max_active_stages, "stages": stages}

    @classmethod
    def from_dict(cls, data: Any, methods: Collection[tuple[str, str]] | None = None) -> Portfolio:
        """The inverse of `to_dict`.

        Args:
            data: {version: 1, name: ..., max_active_stages: 2 (may be left out), stages: {stage: {method: [keep
                ratios]}}}.
            methods: the known (stage, method) pairs, such as the registry's keys; None = any method is taken.
        Raises:
            FieldError: a ValueError that says which field is wrong, with near names for a misspelt one.
        """
        known = ("version", "name", "max_active_stages", "stages")
        if not isinstance(data, Mapping):
            raise FieldError((), f"a portfolio maps {', '.join(known)}; got {data!r}")
        for key in data:
            if key not in known:
                raise FieldError((key,), f"unknown key; near: {near(key, known)}")
        if data.get("version") != VERSION:
            raise FieldError(("version",), f"version {data.get('version')!r} is unknown; known: {VERSION}")
        if not isinstance(data.get("name"), str) or not data["name"]:
            raise FieldError(("name",), f"must be a text; got {data.get('name')!r}")
        active = data.get("max_active_stages", cls.max_active_stages)
        if type(active) is not int or not 1 <= active <= len(STAGES):
            raise FieldError(("max_active_stages",), f"must be a whole number in 1..{len(STAGES)}; got {active!r}")
        if not isinstance(data.get("stages"), Mapping):
            raise FieldError(("stages",), f"must map stages to methods; got {data.get('stages')!r}")
        choices = {stage: _stage_choices(stage, entry, methods) for stage, entry in data["stages"].items()}
        if not any(choices.values()):
            raise FieldError(("stages",), "no choice is offered at any stage")
        return cls(data["name"], choices, active)

    @classmethod
    def from_yaml(cls, path: str | Path, methods: Collection[tuple[str, str]] | None = None) -> Portfolio:
        """A portfolio from a file, or a shipped one by name ("default", "tiny").

        Args:
            path: a path, a path under `configs/`, or a bare name.
            methods: see `from_dict`.
        Raises:
            FileNotFoundError: no such file; near names are listed.
            ValueError: "path:line: what is wrong".
        """
        return parse_yaml(find_config("portfolios", path), lambda data: cls.from_dict(data, methods))


def _stage_choices(stage: Any, entry: Any, methods: Collection[tuple[str, str]] | None) -> tuple[Choice, ...]:
    """The choices of one stage of a portfolio file. Raises: FieldError."""
    if stage not in STAGES:
        raise FieldError(("stages", stage), f"unknown stage; near: {near(stage, STAGES)}")
    if not isinstance(entry, Mapping):
        raise FieldError(("stages", stage), f"must map methods to lists of keep ratios; got {entry!r}")
    choices: list[Choice] = []
    for method, ratios in entry.items():
        keys = ("stages", stage, method)
        here = sorted({name for at, name in methods or () if at == stage} | ({"blind"} if stage == "input" else set()))
        if methods is not None and method not in here:
            raise FieldError(keys, f"unknown method at {stage}; near: {near(method, here)}")
        if not isinstance(ratios, list | tuple) or not ratios:
            raise FieldError(keys, f"must be a list of keep ratios; got {ratios!r}")
        for place, ratio in enumerate(ratios):
            try:
                choice = Choice(method, ratio)
                Plan.of(**{stage: choice})
            except ValueError as error:
                raise FieldError((*keys, place), str(error)) from None
            if choice.is_none:
                raise FieldError((*keys, place), f"keep {ratio} is none, which is always legal and not listed")
            if choice in choices:
                raise FieldError((*keys, place), f"keep {ratio} is given twice")
            choices.append(choice)
    return tuple(choices)


def all_plans(portfolio: Portfolio) -> list[Plan]:
    """Every plan of a portfolio with at most `max_active_stages` active stages, the uncompressed one first.

    Their number is the sum of the products of the stages' choices over all sets of that many stages, plus the blind
    plan where offered.
    """
    plans = [UNCOMPRESSED]
    for stage in STAGES:
        for plan in list(plans):  # every earlier stage is settled in it, this and later ones are none
            if not plan.is_blind and len(plan.active) < portfolio.max_active_stages:
                plans += [plan.replace(stage, choice) for choice in portfolio.choices[stage]]
    return plans


def one_stage_plans(portfolio: Portfolio) -> list[Plan]:
    """The uncompressed plan, the blind plan (offered or not) and each single choice, in stage order."""
    singles = [Plan.of(**{stage: choice}) for stage in STAGES for choice in portfolio.choices[stage]]
    return [UNCOMPRESSED, BLIND, *(plan for plan in singles if not plan.is_blind)]


@dataclass(frozen=True)
class ActionTable:
    """Numbers for choices: an action is (method row m, ratio level r) at a stage.

    Made by `from_portfolio`, stored in an artefact.

    Args:
        methods: (stage, method) rows; row 0 is ("*", "none").
        ratios: all keep ratios, falling; level 0 is 1.0.
        levels: for each row the levels that it offers, rising; (0,) for row 0.
        max_active_stages: stages at which one plan may act.
    Raises:
        ValueError: the parts do not fit each other.
    """

    methods: tuple[tuple[str, str], ...]
    ratios: tuple[float, ...]
    levels: tuple[tuple[int, ...], ...]
    max_active_stages: int = 2

    def __post_init__(self) -> None:
        if self.methods[:1] != ((ANY_STAGE, "none"),) or self.levels[:1] != ((0,),) or self.ratios[:1] != (1.0,):
            raise ValueError("action table: row 0 must be none at any stage with ratio 1.0 at level 0")
        if len(self.levels) != len(self.methods) or len(set(self.methods)) != len(self.methods):
            raise ValueError("action table: each row must be given once and have its levels")
        if any(low >= high for high, low in zip(self.ratios, self.ratios[1:], strict=False)):
            raise ValueError(f"action table: ratios must fall; got {self.ratios}")
        if self.max_active_stages not in range(1, len(STAGES) + 1):
            raise ValueError(
                f"action table: max_active_stages = {self.max_active_stages!r} is outside 1..{len(STAGES)}"
            )
        for (stage, method), levels in zip(self.methods[1:], self.levels[1:], strict=True):
            stage_index(stage)
            if not levels or not all(0 < level < len(self.ratios) for level in levels):
                raise ValueError(
                    f"action table: {stage}:{method} has levels {levels}, outside 1..{len(self.ratios) - 1}"
                )
            for level in levels:
                Plan.of(**{stage: (method, self.ratios[level])})

    @classmethod
    def from_portfolio(cls, portfolio: Portfolio) -> ActionTable:
        """The table of a portfolio, a pure function of its content: equal portfolios number their actions alike."""
        keeps: dict[tuple[str, str], list[float]] = {}
        for stage, choices in portfolio.choices.items():
            for choice in choices:
                keeps.setdefault((stage, choice.method), []).append(choice.keep)
        ratios = sorted({1.0, *(keep for row in keeps.values() for keep in row)}, reverse=True)
        levels = ((0,), *(tuple(ratios.index(keep) for keep in row) for row in keeps.values()))
        return cls(((ANY_STAGE, "none"), *keeps), tuple(ratios), levels, portfolio.max_active_stages)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, R): method rows and ratio levels."""
        return len(self.methods), len(self.ratios)

    def legal(self, stage: str) -> np.ndarray:
        """(M, R) bool, what the table offers at a stage; always `none`. Raises: ValueError on an unknown stage."""
        mask = np.zeros(self.shape, dtype=bool)
        for m, r, _ in self.offers(stage):
            mask[m, r] = True
        return mask

    def offers(self, stage: str) -> tuple[tuple[int, int, Choice], ...]:
        """(m, r, choice) of all that is on offer at a stage, `none` first. Raises: ValueError on an unknown stage."""
        return self._offers[stage_index(stage)]

    @cached_property
    def _offers(self) -> tuple[tuple[tuple[int, int, Choice], ...], ...]:
        rows = {stage: [(0, 0, NONE)] for stage in STAGES}
        for m, (stage, method) in enumerate(self.methods[1:], start=1):
            rows[stage] += [(m, r, Choice(method, self.ratios[r])) for r in self.levels[m]]
        return tuple(tuple(rows[stage]) for stage in STAGES)

    def encode(self, choice: Choice, stage: str) -> tuple[int, int]:
        """The action (m, r) that stands for a choice at a stage. Raises: ValueError where it is not on offer."""
        for m, r, offered in self.offers(stage):
            if offered == choice:
                return m, r
        offers = ", ".join(f"{offered.method}@{offered.keep}" for _, _, offered in self.offers(stage))
        raise ValueError(f"{stage}: {choice.method}@{choice.keep} is not on offer; on offer: {offers}")

    def decode(self, stage: str, m: int, r: int) -> Choice:
        """The choice that an action stands for at a stage. Raises: ValueError where the table does not offer it."""
        for row, level, choice in self.offers(stage):
            if (row, level) == (m, r):
                return choice
        raise ValueError(
            f"{stage}: action ({m}, {r}) is not on offer in a table of {self.shape[0]} rows and {self.shape[1]} levels"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form: lists only, so that a sorted or re-indented file means the same."""
        return {
            "methods": [list(row) for row in self.methods],
            "ratios": list(self.ratios),
            "levels": [list(row) for row in self.levels],
            "max_active_stages": self.max_active_stages,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActionTable:
        """The inverse of `to_dict`. Raises: ValueError on missing or unfitting parts."""
        try:
            methods = tuple((str(stage), str(method)) for stage, method in data["methods"])
            levels = tuple(tuple(int(level) for level in row) for row in data["levels"])
            ratios = tuple(float(ratio) for ratio in data["ratios"])
            return cls(methods, ratios, levels, int(data["max_active_stages"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"action table: {type(error).__name__} {error} in the stored form") from None

"""Named plans: systems that act at several stages, or plans worth a name, one YAML file each in `configs/plans/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.plans.files import CONFIGS, FieldError, find_config, parse_yaml
from foveate.plans.plan import STAGES, Plan, near


def load_plan(name: str | Path) -> Plan:
    """A plan by the name of its file in `configs/plans/`, or by path.

    Raises:
        FileNotFoundError: no such plan; near names are listed.
        ValueError: "path:line: what is wrong".
    """
    return parse_yaml(find_config("plans", name), _parse)


def named_plans() -> dict[str, Plan]:
    """Every plan in `configs/plans/` by its file's name, in alphabetical order. Raises: ValueError, see `load_plan`."""
    return {path.stem: load_plan(path) for path in sorted((CONFIGS / "plans").glob("*.yaml"))}


def _parse(data: Any) -> Plan:
    if not isinstance(data, Mapping) or set(data) != {"version", "plan"}:
        raise FieldError(
            (), f"a plan file holds version and plan; got {sorted(data) if isinstance(data, Mapping) else data!r}"
        )
    if data["version"] != 1:
        raise FieldError(("version",), f"version {data['version']!r} is unknown; known: 1")
    if not isinstance(data["plan"], Mapping):
        raise FieldError(("plan",), f"must map stages to {{method: name, keep: ratio}}; got {data['plan']!r}")
    for stage, entry in data["plan"].items():  # one at a time, so that an error has a line
        if stage not in STAGES:
            raise FieldError(("plan", stage), f"unknown stage; near: {near(stage, STAGES)}")
        try:
            Plan.from_dict({stage: entry})
        except ValueError as error:
            raise FieldError(("plan", stage), str(error).removeprefix(f"{stage}: ")) from None
    try:
        return Plan.from_dict(data["plan"])
    except ValueError as error:
        raise FieldError(("plan",), str(error)) from None

"""The registry: classes by (stage, name), filed by the `register` decorator, never instances."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar

from foveate.compressors.base import STAGES, Compressor

COMPRESSORS: dict[tuple[str, str], type[Compressor]] = {}
C = TypeVar("C", bound=type[Compressor])


def register(cls: C) -> C:
    """Files a class under every (stage, name) it declares. Raises: ValueError on a duplicate, naming both modules."""
    for stage in cls.stages:
        if stage not in STAGES:
            raise ValueError(f"{cls.__name__}: unknown stage {stage!r}; known: {', '.join(STAGES)}")
        other = COMPRESSORS.setdefault((stage, cls.name), cls)
        if other is not cls:
            raise ValueError(f"({stage}, {cls.name}) is declared by {other.__module__} and by {cls.__module__}")
    return cls


def make(stage: str, name: str, **arguments: Any) -> Compressor:
    """A method with its hyperparameters. Raises: ValueError on an unknown name, listing near ones."""
    if (stage, name) not in COMPRESSORS:
        here = sorted(n for s, n in COMPRESSORS if s == stage)
        near = get_close_matches(name, here, n=3) or here
        raise ValueError(f"no compressor {name!r} at stage {stage!r}; near: {', '.join(near) or 'none'}")
    return COMPRESSORS[stage, name](**arguments)

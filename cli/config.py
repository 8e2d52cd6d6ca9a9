"""Configuration files as dataclasses: flag over file over default, an unknown key is an error with its line."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from foveate.plans.files import FieldError, parse_yaml
from foveate.plans.plan import near

T = TypeVar("T")
LIBRARIES = ("torch", "transformers", "numpy", "stable-baselines3", "gymnasium", "ray", "scikit-learn", "Pillow")


def read_config(kind: type[T], path: str | Path, flags: Mapping[str, Any] | None = None) -> T:
    """A configuration from a YAML file.

    Args:
        kind: its dataclass; its fields may be dataclasses too.
        path: the file.
        flags: dotted key -> value, over what the file says; None = the flag was not given.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: "path:line: what is wrong": an unknown key (near ones are listed), a missing one, a wrong type, or a
            value that the dataclass refuses.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no configuration file {str(path)!r}")

    def parse(data: Any) -> T:
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            raise FieldError((), f"a configuration maps keys to values; got {data!r}")
        for key, value in (flags or {}).items():
            if value is not None:
                data = _set(data, key.split("."), value)
        return made(kind, data)

    return parse_yaml(path, parse)


def _set(data: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """`data` with one nested value replaced; the original stays."""
    inner = data if isinstance(data, Mapping) else {}
    return {**inner, keys[0]: value if len(keys) == 1 else _set(inner.get(keys[0], {}), keys[1:], value)}


def made(kind: type[T], data: Any, keys: tuple[Any, ...] = ()) -> T:
    """A dataclass from plain data. Raises: FieldError."""
    if not isinstance(data, Mapping):
        raise FieldError(keys, f"must map {', '.join(f.name for f in fields(kind))}; got {data!r}")
    hints, known = typing.get_type_hints(kind), {f.name: f for f in fields(kind)}
    for key in data:
        if key not in known:
            raise FieldError((*keys, key), f"unknown key; near: {near(key, known)}")
    for name, each in known.items():
        if name not in data and each.default is MISSING and each.default_factory is MISSING:
            raise FieldError(keys, f"{name} is missing")
    values = {name: _value(hints[name], value, (*keys, name)) for name, value in data.items()}
    try:
        return kind(**values)
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(keys, str(error)) from None


def _value(hint: Any, value: Any, keys: tuple[Any, ...]) -> Any:
    """One value, checked against its type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        hint = next(each for each in inner if each is not type(None))
        return _value(hint, value, keys)
    if is_dataclass(hint):
        return made(hint, value, keys)
    if origin is tuple:
        return _tuple(inner, value, keys)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    advice = "; write 3.0e-4 with the dot" if hint is float and isinstance(value, str) else ""
    raise FieldError(keys, f"must be of type {wanted}; got {value!r}{advice}")


def _tuple(inner: tuple[Any, ...], value: Any, keys: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise FieldError(keys, f"must be a list; got {value!r}")
    hints = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
    if len(hints) != len(value):
        raise FieldError(keys, f"must hold {len(hints)} values; got {value!r}")
    return tuple(_value(hint, each, (*keys, i)) for i, (hint, each) in enumerate(zip(hints, value, strict=True)))


def save_resolved(folder: str | Path, config: Any) -> Path:
    """Writes the configuration as it was resolved, with library versions, into `folder`/config.json."""
    from foveate.policies.export import library_versions

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    text = json.dumps({"config": asdict(config), "versions": library_versions(LIBRARIES)}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path

"""Configuration files: where the shipped ones lie, and YAML read so that an error can name its line."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

from foveate.plans.plan import near

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The shipped configuration files: `configs/` of the package."""

T = TypeVar("T")


class FieldError(ValueError):
    """A field of a configuration is wrong: `keys` leads to it from the top, and the message names them."""

    def __init__(self, keys: tuple[Hashable, ...], message: str) -> None:
        self.keys = keys
        self.message = message
        super().__init__(keys, message)  # both, so that it survives pickling

    def __str__(self) -> str:
        return ": ".join([".".join(str(key) for key in self.keys), self.message] if self.keys else [self.message])


def find_config(kind: str, name: str | Path) -> Path:
    """The file of a configuration: a path, a path under `configs/`, or the bare name of a shipped one of this kind.

    Args:
        kind: folder under `configs/`, such as "portfolios".
        name: "my/own.yaml", "portfolios/tiny.yaml" or "tiny".
    Raises:
        FileNotFoundError: there is no such file; the message lists near names.
    """
    for path in (Path(name), CONFIGS / name, CONFIGS / kind / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))
    where, close = Path("configs", kind).as_posix(), near(Path(name).stem, shipped)
    raise FileNotFoundError(f"no file {str(name)!r}, nor one of that name in {where}; near: {close}")


def parse_yaml(path: str | Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of a YAML file's content.

    Args:
        path: a UTF-8 file.
        parse: takes the content; a `FieldError` that it raises gets the line of its field.
    Raises:
        ValueError: "path:line: what is wrong", for bad YAML, a key given twice, or a bad field.
    """
    import yaml  # here, so that plans can be used where only numpy is installed

    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[tuple[str, ...], int] = {}
        _lines_of(node, (), lines, set())
        return parse(yaml.safe_load(text))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except _TwiceError as error:
        raise ValueError(f"{path}:{error.line}: {error}") from None
    except FieldError as error:
        keys = tuple(str(key) for key in error.keys)
        while keys and keys not in lines:  # a field that is missing: the line of what should hold it
            keys = keys[:-1]
        raise ValueError(f"{path}:{lines.get(keys, 1)}: {error}") from None


class _TwiceError(Exception):
    def __init__(self, key: str, line: int) -> None:
        self.line = line
        super().__init__(f"key {key!r} is given twice")


def _lines_of(node: Any, keys: tuple[str, ...], lines: dict[tuple[str, ...], int], seen: set[int]) -> None:
    """Fills `lines` with the 1-based line of every key; `seen` stops it where an alias leads back to its anchor."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "sequence":
        for index, item in enumerate(node.value):
            lines[keys + (str(index),)] = item.start_mark.line + 1
            _lines_of(item, keys + (str(index),), lines, seen)
    elif node.id == "mapping":
        for key, value in node.value:
            inner = keys + (str(key.value),)
            if inner in lines:
                raise _TwiceError(str(key.value), key.start_mark.line + 1)
            lines[inner] = key.start_mark.line + 1
            _lines_of(value, inner, lines, seen)

"""Configuration files: defaults, flags over file, and every mistake with its line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from foveate.cli.config import read_config, save_resolved

pytestmark = pytest.mark.fast


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    deep: bool = False
    steps: int = 3

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps: {self.steps} is below 0")


def read(tmp_path, text, flags=None):
    (tmp_path / "a.yaml").write_text(text)
    return read_config(Outer, tmp_path / "a.yaml", flags)


def test_what_is_not_said_is_the_default(tmp_path):
    assert read(tmp_path, "name: x\n") == Outer("x")
    got = read(tmp_path, "name: x\ninner: {rate: 1, sizes: [4], pair: [0, 2.5]}\ndeep: true\n")
    assert got == Outer("x", Inner(1.0, (4,), (0.0, 2.5)), True) and type(got.inner.rate) is float


def test_a_flag_is_over_the_file_and_none_is_no_flag(tmp_path):
    text = "name: x\ninner: {rate: 0.5}\nsteps: 7\n"
    got = read(tmp_path, text, {"steps": 9, "inner.sizes": [3], "name": None})
    assert got == Outer("x", Inner(0.5, (3,)), steps=9)
    assert read(tmp_path, "name: x\n", {"inner.rate": 2.0}).inner == Inner(2.0)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: x\nstep: 3\n", 2, ["step", "unknown key", "near: steps"]),
        ("name: x\ninner:\n  rat: 1\n", 3, ["inner.rat", "near: rate"]),
        ("name: x\n\nsteps: many\n", 3, ["steps", "type int", "'many'"]),
        ("name: x\nsteps: 1.5\n", 2, ["steps", "type int"]),
        ("name: x\nsteps: true\n", 2, ["steps", "type int"]),
        ("name: x\ninner: {rate: 3e-4}\n", 2, ["inner.rate", "type float", "with the dot"]),
        ("name: x\ninner: {sizes: 3}\n", 2, ["inner.sizes", "list"]),
        ("name: x\ninner: {sizes: [1, b]}\n", 2, ["inner.sizes.1", "'b'"]),
        ("name: x\ninner: {pair: [1]}\n", 2, ["inner.pair", "2 values"]),
        ("name: x\ninner: 5\n", 2, ["inner", "rate, sizes, pair"]),
        ("steps: 2\n", 1, ["name is missing"]),
        ("name: x\nsteps: -2\n", 1, ["steps: -2 is below 0"]),
        ("- a\n", 1, ["maps keys"]),
        ("name: [\n", 2, ["not YAML"]),
        ("name: x\nname: y\n", 2, ["given twice"]),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, text, line, words):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'a.yaml'}:{line}: "), caught.value
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.yaml"):
        read_config(Outer, tmp_path / "gone.yaml")


def test_the_resolved_configuration_is_saved_with_library_versions(tmp_path):
    path = save_resolved(tmp_path / "run", Outer("x", Inner(sizes=(5,))))
    saved = json.loads(path.read_text())
    assert path == tmp_path / "run" / "config.json"
    assert saved["config"] == {
        **{"name": "x", "deep": False, "steps": 3},
        "inner": {"rate": 0.1, "sizes": [5], "pair": None},
    }
    assert set(saved["versions"]) >= {"torch", "numpy", "transformers"}

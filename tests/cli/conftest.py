"""Runs the command line in this process: exit status, stdout and stderr of one call."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foveate.cli.main import main


@dataclass(frozen=True)
class Call:
    """What one call gave."""

    status: int
    out: str
    err: str

    def refused(self, verb: str, *words: str) -> bool:
        """One line on stderr from this verb, with these words, and the status of bad input."""
        one_line = self.err.count("\n") == 1 and self.err.startswith(f"foveate {verb}: ")
        return self.status == 2 and one_line and self.out == "" and all(word in self.err for word in words)


@pytest.fixture
def call(capsys) -> Callable[..., Call]:
    """call("list", "--json")."""

    def run(*argv: object) -> Call:
        capsys.readouterr()
        status = main([str(each) for each in argv])
        seen = capsys.readouterr()
        return Call(status, seen.out, seen.err)

    return run


def _serving() -> ModuleType:
    """The tiny model and the controllers of the gate's tests: one builder for both folders."""
    path = Path(__file__).parents[1] / "serving" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_serving", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def serving() -> ModuleType:
    """See `_serving`; loads torch, so only for tests that run a model."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # as the verbs do by an environment variable, which comes too late in a test run
    return _serving()


@pytest.fixture(scope="session")
def folder(serving, tmp_path_factory) -> Path:
    """A saved tiny model with its processor and text tower."""
    return serving.tiny.build(tmp_path_factory.mktemp("llava"), text_tower=True)


@pytest.fixture(scope="session")
def host(folder):
    from foveate.models import load_host

    return load_host(folder)


@pytest.fixture(scope="session")
def make_artefact(serving, host) -> Callable[..., Any]:
    """make_artefact(plan, **fields): a controller that takes a plan wherever it can."""
    return lambda plan=None, seed=0, **fields: serving.artefact(host, plan, seed, **fields)


@pytest.fixture(scope="session")
def controller(make_artefact, tmp_path_factory) -> Path:
    """The file of a controller that always takes visionzip at 0.25."""
    from foveate.controller import save
    from foveate.plans.plan import Plan

    path = tmp_path_factory.mktemp("controller") / "zip.fov"
    save(path, make_artefact(Plan.of(outside=("visionzip", 0.25))))
    return path


@pytest.fixture(scope="session")
def photo(serving, tmp_path_factory) -> Path:
    """A picture file, not square."""
    from PIL import Image

    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(serving.tiny.picture(3, 80, 60)).save(path)
    return path

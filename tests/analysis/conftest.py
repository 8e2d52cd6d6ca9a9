"""The toy tables of the policies' and the rollouts' tests, and the tiny host of the live environment's."""

import importlib.util
from pathlib import Path

import pytest


def _module(folder: str):
    path = Path(__file__).parent.parent / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = _module("policies").toy
rollouts = _module("rollouts")
host, inputs = rollouts.host, rollouts.inputs


@pytest.fixture
def table():
    """Eight inputs of two regimes under five plans, every number known."""
    return rollouts.make_toy()

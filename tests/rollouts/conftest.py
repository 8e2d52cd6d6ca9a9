"""Toy tables whose every number is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from foveate.controller.features import PIXEL_FEATURES, QUESTION_FEATURES
from foveate.plans import BLIND, UNCOMPRESSED, Choice, Plan, Portfolio
from foveate.rollouts.table import Table

TOY_PLANS = (
    UNCOMPRESSED,
    BLIND,
    Plan.of(input=("downsample", 0.25)),
    Plan.of(outside=("visionzip", 0.25)),
    Plan.of(prefill=("fastv", 0.25)),
)
TOY_SHARES = (1.0, 0.1, 0.3, 0.4, 0.6)
TOY_PORTFOLIO = Portfolio(
    "toy",
    {
        "input": (Choice("blind", 0.0), Choice("downsample", 0.25)),
        "outside": (Choice("visionzip", 0.25),),
        "prefill": (Choice("fastv", 0.25),),
    },
    max_active_stages=1,
)


def make_toy(n: int = 8, seed: int = 0) -> Table:
    """Input i is right under plan 0 and under plan 2 + i % 3 alone; plan 1 (blind) is right for i % 4 == 0 too."""
    rng = np.random.default_rng(seed)
    p = len(TOY_PLANS)
    correct = np.zeros((n, p), bool)
    correct[:, 0] = True
    correct[np.arange(n), 2 + np.arange(n) % 3] = True
    correct[::4, 1] = True
    cost = np.outer(1e6 + np.arange(n) * 1e3, TOY_SHARES)
    names = {
        "pixels": PIXEL_FEATURES,
        "question": QUESTION_FEATURES,
        "block1": ("d",),
        "encoder": ("e",),
        "layer1": ("f",),
    }
    groups = {k: rng.uniform(size=(n, len(v))).astype(np.float32) for k, v in names.items()}
    groups["pixels"][:, 0] = np.arange(n) % 3
    return Table(
        ids=[f"toy/test/{i}#0" for i in range(n)],
        regimes=["even" if i % 2 == 0 else "odd" for i in range(n)],
        families=[f"family{i // 2}" for i in range(n)],
        templates=["what"] * n,
        splits=["test"] * n,
        questions=[f"what is {i}?" for i in range(n)],
        plans=TOY_PLANS,
        correct=correct,
        prob=np.where(correct, 0.75, 0.25),
        cost=cost,
        tokens=np.tile([16, 0, 4, 4, 8], (n, 1)),
        kv=np.tile([160, 40, 80, 80, 120], (n, 1)),
        groups=groups,
        group_names=names,
        group_cost={"block1": 1000.0, "encoder": 2000.0, "layer1": 3000.0},
        meta={"host": "toy", "seed": seed, "portfolio": TOY_PORTFOLIO.to_dict()},
        label_free=np.where(correct, 0.5, 0.125),
        reach=np.outer(1e6 + np.arange(n) * 1e3, (0.0, 0.05, 0.2, 0.2, 0.3, 1.0)),
    )


@pytest.fixture
def toy() -> Table:
    return make_toy()


def _live():
    """The fixtures of the live environment's tests."""
    path = Path(__file__).resolve().parents[1] / "envs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("live_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


live = _live()
host, inputs, portfolio = live.host, live.inputs, live.portfolio

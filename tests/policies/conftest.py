"""A replay table whose best policy is known: three kinds of input that need different plans."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foveate.controller import PIXEL_FEATURES, QUESTION_FEATURES
from foveate.plans import BLIND, UNCOMPRESSED, Plan, Portfolio
from foveate.rollouts.table import Table

PORTFOLIO = Portfolio.from_dict(
    {
        "version": 1,
        "name": "toy",
        "max_active_stages": 1,
        "stages": {
            "input": {"blind": [0.0], "downsample": [0.25]},
            "outside": {"visionzip": [0.25]},
            "prefill": {"fastv": [0.5, 0.25]},
        },
    }
)
DOWN, ZIP = Plan.of(input=("downsample", 0.25)), Plan.of(outside=("visionzip", 0.25))
FAST_HALF, FAST = Plan.of(prefill=("fastv", 0.5)), Plan.of(prefill=("fastv", 0.25))
PLANS = (UNCOMPRESSED, BLIND, DOWN, ZIP, FAST_HALF, FAST)
SHARES = np.array([1.0, 0.05, 0.2, 0.3, 0.65, 0.5])
# which plans are right for the kinds coarse, salient and fine; BLIND never is
RIGHT = np.array([[1, 0, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 0]], bool)
CHEAPEST = np.array([2, 3, 4])
"""Kind -> column of its cheapest right plan."""


def table(n=600, seed=0, split="policy-train", noise=0.0, clear=("pixels", "encoder", "layer1"), costs=None) -> Table:
    """A toy table. Kinds are drawn uniformly.

    Args:
        n: inputs. seed: of all draws. split: its name.
        noise: share of cells of `correct` that are flipped.
        clear: groups that reveal something: "pixels" tells coarse from the rest, "question" all three kinds,
            "encoder" salient from fine, "layer1" all three kinds.
        costs: group_cost.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=n)
    correct = RIGHT[kind] ^ (rng.random((n, len(PLANS))) < noise)
    full = 1e9 * rng.uniform(0.9, 1.1, size=n)
    groups = {
        "pixels": rng.random((n, len(PIXEL_FEATURES))),
        "question": rng.random((n, len(QUESTION_FEATURES))),
        "block1": rng.normal(size=(n, 3)),
        "encoder": rng.normal(3.0, 2.0, size=(n, 4)),
        "layer1": rng.normal(size=(n, 3)),
    }
    if "pixels" in clear:
        groups["pixels"][:, 4] = np.where(kind == 0, 0.2, 0.8) + rng.normal(0, 0.03, n)
    if "question" in clear:
        groups["question"][:, 7] = kind / 2
    if "encoder" in clear:
        groups["encoder"][:, 1] = np.where(kind == 2, 5.0, 1.0) + rng.normal(0, 0.2, n)
    if "layer1" in clear:
        groups["layer1"][:, 2] = kind - 1.0
    return Table(
        ids=[f"toy/{split}/{seed}.{i}#0" for i in range(n)],
        regimes=np.array(["even", "odd"])[np.arange(n) % 2],
        families=[f"f{seed}.{i // 2}" for i in range(n)],
        templates=["what"] * n,
        splits=[split] * n,
        questions=["what is it?"] * n,
        plans=PLANS,
        correct=correct,
        prob=np.where(correct, 0.9, 0.1),
        cost=full[:, None] * SHARES,
        tokens=np.ones((n, len(PLANS))) * 144 * SHARES,
        kv=np.ones((n, len(PLANS))),
        reach=full[:, None] * np.array([0.0, 0.01, 0.1, 0.1, 0.15, 0.95]),
        groups=groups,
        group_names={
            "pixels": PIXEL_FEATURES,
            "question": QUESTION_FEATURES,
            "block1": tuple(f"b{i}" for i in range(3)),
            "encoder": tuple(f"e{i}" for i in range(4)),
            "layer1": tuple(f"l{i}" for i in range(3)),
        },
        group_cost=costs or {},
        meta={"host": "toy", "fingerprint": "0" * 64, "portfolio": PORTFOLIO.to_dict(), "seed": seed},
    )


@pytest.fixture(scope="session")
def toy():
    """The toy tables: `toy.table(...)`, and what is known of them."""
    torch.set_num_threads(1)
    return SimpleNamespace(
        table=table, PORTFOLIO=PORTFOLIO, PLANS=PLANS, SHARES=SHARES, RIGHT=RIGHT, CHEAPEST=CHEAPEST, BLIND=BLIND
    )

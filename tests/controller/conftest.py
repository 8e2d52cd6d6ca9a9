"""A small controller with random weights over a made-up portfolio, for every test of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.controller import Artefact, Layout, Network, Normalisation
from foveate.plans.plan import Plan
from foveate.plans.portfolio import ActionTable, Portfolio

TOKEN_FEATURES = {
    "block1": ("similarity", "participation"),
    "encoder": ("concentration",),
    "layer1": ("mass", "entropy"),
}
PORTFOLIO = Portfolio.from_dict(
    {
        "version": 1,
        "name": "made-up",
        "stages": {
            "encoder": {"tome": [0.5, 0.25]},
            "outside": {"visionzip": [0.5, 0.25], "random": [0.5, 0.125]},
            "prefill": {"fastv": [0.75, 0.5]},
        },
    }
)
PLANS = (Plan(), Plan.of(outside=("visionzip", 0.25)), Plan.of(prefill=("fastv", 0.5)), Plan.of(input=("blind", 0.0)))
HIDDEN = 16


def random_network(kind: str, shape: tuple[int, int], inputs: int, seed: int, layers: int = 2) -> Network:
    """Weights of unit gain, `layers` hidden layers of `HIDDEN`."""
    rng = np.random.default_rng(seed)
    m, r = shape
    widths = [inputs, *[HIDDEN] * layers]
    sizes = {f"trunk.{i}": (widths[i + 1], widths[i]) for i in range(layers)}
    sizes |= {"policy": {"method": (m, widths[-1])}, "regression": {"quality": (m * r, widths[-1])}}[kind]
    sizes["ratio" if kind == "policy" else "cost"] = (m * r, widths[-1])
    arrays = {}
    for name, (out, width) in sizes.items():
        arrays[f"{name}.weight"] = (rng.standard_normal((out, width)) / np.sqrt(width)).astype(np.float32)
        arrays[f"{name}.bias"] = (0.1 * rng.standard_normal(out)).astype(np.float32)
    return Network(kind, shape, "tanh", arrays)


@pytest.fixture
def layout() -> Layout:
    return Layout.of(TOKEN_FEATURES)


@pytest.fixture
def make_artefact(layout: Layout) -> Callable[..., Artefact]:
    """make_artefact(kind="policy", seed=0, whole_plans=False, **fields): an artefact that passes its own check."""

    def make(
        kind: str = "policy", seed: int = 0, whole_plans: bool = False, layers: int = 2, **fields: Any
    ) -> Artefact:
        table = ActionTable.from_portfolio(PORTFOLIO)
        shape = (len(PLANS), 1) if whole_plans else table.shape
        rng = np.random.default_rng(seed + 1)
        mean, scale = rng.uniform(0, 0.5, layout.size), rng.uniform(0.5, 1, layout.size)
        low, high = np.full(layout.size, -1.0), np.full(layout.size, 2.0)
        artefact = Artefact(
            layout=layout,
            normalisation=Normalisation(*(a.astype(np.float32) for a in (mean, scale, low, high))),
            network=random_network(kind, shape, layout.size, seed, layers),
            actions={"plans": [plan.to_dict() for plan in PLANS]} if whole_plans else table.to_dict(),
            portfolio=PORTFOLIO.to_dict(),
            host="tiny",
            fingerprint="ab" * 32,
            lam=0.3,
            calibration=((0.01, 0.9), (0.1, 0.6), (1.0, 0.2)),
            provenance={"seed": seed, "versions": {"numpy": "any"}},
        )
        return replace(artefact, **fields)

    return make


@pytest.fixture
def groups() -> dict[str, np.ndarray]:
    """What is revealed before the `outside` decision, drawn within the training range."""
    rng = np.random.default_rng(3)
    sizes = {"pixels": 24, "question": 41, "block1": 2, "encoder": 1}
    return {group: rng.uniform(0, 1, n).astype(np.float32) for group, n in sizes.items()}

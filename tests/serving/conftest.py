"""A tiny random LLaVA, as the models' tests build it, and controllers for it whose decisions are known beforehand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_words import TALK

from foveate.controller import Artefact, Layout, Network, Normalisation
from foveate.models import load_host
from foveate.models.features import TOKEN_FEATURES
from foveate.plans.plan import Plan
from foveate.plans.portfolio import ActionTable, Portfolio

PORTFOLIO = Portfolio.from_dict(
    {
        "version": 1,
        "name": "small",
        "max_active_stages": 2,
        "stages": {
            "input": {"blind": [0.0], "downsample": [0.25]},
            "encoder": {"tome": [0.5]},
            "outside": {"visionzip": [0.5, 0.25], "random": [0.5]},
            "prefill": {"fastv": [0.5, 0.25]},
            "decode": {"look_m": [0.5]},
        },
    }
)


def _tiny() -> ModuleType:
    """The helpers of the models' tests: one builder of tiny models for both folders."""
    path = Path(__file__).parents[1] / "models" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _tiny()


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A saved model with its processor and text tower."""
    torch.set_num_threads(1)
    return tiny.build(tmp_path_factory.mktemp("llava"), text_tower=True)


@pytest.fixture(scope="session")
def host(folder):
    return load_host(folder)


@pytest.fixture(scope="session")
def talking(tmp_path_factory):
    """A host whose template can write conversations."""
    return load_host(tiny.build(tmp_path_factory.mktemp("talk"), chat=TALK))


@pytest.fixture
def batch() -> tuple[list[np.ndarray], list[str]]:
    """Four pictures and questions of different lengths."""
    return [tiny.picture(seed) for seed in range(4)], list(tiny.QUESTIONS)


def artefact(
    host: Any,
    plan: Plan | None = None,
    seed: int = 0,
    /,
    video: bool = False,
    portfolio: Portfolio = PORTFOLIO,
    **fields: Any,
) -> Artefact:
    """A controller that always takes the choices of a plan where they are legal, else none; random without a plan."""
    table, layout = ActionTable.from_portfolio(portfolio), Layout.of(TOKEN_FEATURES, video)
    rng, (m, r), width = np.random.default_rng(seed), table.shape, 16
    arrays = {
        "trunk.0.weight": rng.standard_normal((width, layout.size)) / 4,
        "trunk.0.bias": rng.standard_normal(width),
        "method.weight": rng.standard_normal((m, width)),
        "method.bias": np.zeros(m),
        "ratio.weight": rng.standard_normal((m * r, width)),
        "ratio.bias": np.zeros(m * r),
    }
    if plan is not None:
        arrays["method.weight"][:], arrays["ratio.weight"][:] = 0, 0
        arrays["method.bias"][0] = 1
        for stage, choice in plan.active:
            row, level = table.encode(choice, stage)
            arrays["method.bias"][row], arrays["ratio.bias"][row * r + level] = 2, 2
    ones = np.ones(layout.size, np.float32)
    made = Artefact(
        layout=layout,
        normalisation=Normalisation(0 * ones, ones, -1e6 * ones, 1e6 * ones),
        network=Network("policy", table.shape, "tanh", {k: v.astype(np.float32) for k, v in arrays.items()}),
        actions=table.to_dict(),
        portfolio=portfolio.to_dict(),
        host=host.name,
        fingerprint=host.fingerprint,
        lam=0.3,
        calibration=((0.01, 0.9), (0.1, 0.6), (1.0, 0.2)),
    )
    return replace(made, **fields)


def whole_plans(host: Any, plans: tuple[Plan, ...], quality: list[float], cost: list[float]) -> Artefact:
    """A controller that chooses the whole plan at once, by fixed predictions."""
    layout = Layout.of(TOKEN_FEATURES)
    p = len(plans)
    arrays = {"trunk.0.weight": np.zeros((4, layout.size)), "trunk.0.bias": np.zeros(4)}
    for head, values in (("quality", quality), ("cost", cost)):
        arrays |= {f"{head}.weight": np.zeros((p, 4)), f"{head}.bias": np.asarray(values)}
    network = Network("regression", (p, 1), "tanh", {k: v.astype(np.float32) for k, v in arrays.items()})
    return artefact(host, network=network, actions={"plans": [plan.to_dict() for plan in plans]})


@pytest.fixture(scope="session")
def make_artefact(host) -> Callable[..., Artefact]:
    """make_artefact(plan=None, seed=0, **fields)."""
    return lambda plan=None, seed=0, **fields: artefact(host, plan, seed, **fields)


@pytest.fixture(scope="session")
def make_whole(host) -> Callable[..., Artefact]:
    """make_whole(plans, quality, cost)."""
    return lambda plans, quality, cost: whole_plans(host, plans, quality, cost)


@pytest.fixture
def inputs(host, batch) -> dict[str, torch.Tensor]:
    """What the processor returns for the batch, left-padded."""
    images, questions = batch
    talks = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}] for q in questions]
    processor = host.inputs.processor
    text = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    return dict(processor(images=images, text=text, padding=True, return_tensors="pt"))

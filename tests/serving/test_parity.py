"""Serving sees what training saw: the gate and the environment show a controller the same observations, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.controller import Controller
from foveate.envs.compression import CompressionEnv
from foveate.envs.inputs import Input
from foveate.plans.portfolio import Portfolio
from foveate.serving.gate import Gate


class Watched(Controller):
    """A controller that remembers what it was shown."""

    def decide(self, observation):
        self.seen = [*getattr(self, "seen", []), observation]
        return super().decide(observation)


def through_env(host, made, image, question, budget):
    """Observations and plan of one episode under a controller."""
    row = Input("a#0", image, question, ("red",), "any", "any", "any", "test")
    env = CompressionEnv(host, Portfolio.from_dict(made.portfolio), [row])
    controller, seen = Controller(made), []
    observation, info = env.reset(options={"lam": made.lam, "budget": budget, "index": 0})
    done = False
    while not done:
        seen.append(observation)
        decision = controller.decide(observation)
        observation, _, done, _, info = env.step((decision.method, decision.ratio))
    return seen, info["plan"]


@pytest.mark.parametrize("budget", [None, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_gate_and_environment_show_a_controller_the_same(host, make_artefact, batch, seed, budget):
    made = make_artefact(seed=seed)
    for image, question in zip(*batch, strict=True):
        expected, plan = through_env(host, made, image, question, budget)
        controller = Watched(made)
        gate = Gate(host, None, controller)
        if budget is not None:  # the environment counts a fixed answer and no decisions, the gate the longest answer
            full, shape = gate._driver.masks.full, host.open([image], [question]).shapes[0]
            gate = Gate(host, None, controller, max_flops=budget * full(shape) + 6 * gate._driver.decision_flops)
        gate.answer([image], [question], 1)
        assert gate.last[0].plan.label() == plan
        assert len(controller.seen) == len(expected)
        for mine, theirs in zip(controller.seen, expected, strict=True):
            assert np.array_equal(mine["mask"].astype(bool), theirs["mask"].astype(bool))
            assert np.allclose(mine["vector"], theirs["vector"], rtol=0, atol=2e-3 if budget else 0)

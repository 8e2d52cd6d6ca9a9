"""Learned methods on other families: one untrained network runs, costs what is forecast, and learns."""

from pathlib import Path

import numpy as np
import pytest
import tiny_anyres
import tiny_qwen
import tiny_shuffle
import torch
from tiny_words import QUESTIONS

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.distilling.lessons import Lesson
from foveate.models.distilling.pairs import Batch, nearest
from foveate.models.distilling.recipe import Run
from foveate.models.distilling.settings import Settings
from foveate.models.errors import HostError
from foveate.plans.plan import Plan

BUILD = {
    "llava_onevision": lambda folder: tiny_anyres.build(folder, tiny_anyres.ONEVISION, "qwen2"),
    "llava_next": lambda folder: tiny_anyres.build(folder, tiny_anyres.NEXT, "mistral"),
    "internvl": lambda folder: tiny_shuffle.build(folder, "internvl"),
    "qwen2_5_vl": lambda folder: tiny_qwen.build(folder, "qwen2_5_vl"),
}


class Pictures:
    """Random pictures of one size."""

    label = "pictures"

    def lesson(self, number, seed):
        picture = np.random.default_rng([seed, number]).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        return Lesson(picture, QUESTIONS[number % 4], ("red", None)[number % 2])

    def held_out(self, count):
        return [self.lesson(10**6 + i, 0) for i in range(count)]


@pytest.fixture(scope="module", params=BUILD)
def host(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return load_host(Path(BUILD[request.param](folder) or folder))


@pytest.mark.parametrize("name", ["ldpv2", "mqt"])
def test_an_untrained_network_runs_at_the_cost_that_is_forecast(host, name):
    method = make("projector", name)
    host.learned["projector", name] = untrained(method, host.widths, host.matrices()).network
    picture = Pictures().lesson(0, 0)
    p = host.open([picture.image], [picture.question])
    keep = nearest([host.make("projector", name)], Batch(host, "projector", [picture]).shapes[0], 0.5)
    assert keep < 1
    plan = Plan.of(projector=(name, keep))
    p.run(plan).decode(max_new_tokens=3)
    assert p.ledger[0] == host.forecast(plan, p.rows[0].shape, new_tokens=len(p.generated[0]))
    assert 0 < p.counts["projector"][0] < p.rows[0].shape.n_visual


@pytest.mark.parametrize("name", ["ldpv2", "mqt"])
def test_the_recipe_teaches_it(host, name, tmp_path):
    run = Run(host, name, Pictures(), Settings(steps_a=1, steps_b=1, batch=2, held_out=2), tmp_path / "work")
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.train()
    assert any(not torch.equal(before[key], value) for key, value in run.network.state_dict().items())
    path, figures = run.finish(tmp_path)
    assert path.is_file() and all(figure.rows == 2 for figure in figures)


REASONS = {
    "llava_onevision": "qg_vtc: needs the signal question, which this host has not",
    "internvl": "qg_vtc: acts on patches, and this host's connector wants whole units of 4",
    "qwen2_5_vl": "qg_vtc: acts on patches, and this host's connector wants whole units of 4",
}


def test_a_method_inside_the_tower_is_taught_or_refused_in_one_line(host, tmp_path):
    key = ("encoder", "qg_vtc")
    reason = host.forbids(*key)
    assert reason == REASONS.get(host.model.config.model_type) and host.supports(*key) is not None
    if reason is not None:
        with pytest.raises(HostError, match="qg_vtc: "):
            Run(host, "qg_vtc", Pictures(), Settings(), tmp_path)
        return
    run = Run(host, "qg_vtc", Pictures(), Settings(steps_a=1, steps_b=2, batch=2, held_out=2), tmp_path / "work")
    run.train()
    path, _ = run.finish(tmp_path)
    assert path.is_file() and all(not torch.equal(p, torch.zeros_like(p)) for p in run.network.parameters())
    picture, plan = Pictures().lesson(0, 0), Plan.of(encoder=(key[1], 0.25))
    p = host.open([picture.image], [picture.question])
    p.run(plan).decode(max_new_tokens=2)
    assert p.ledger[0] == host.forecast(plan, p.rows[0].shape, new_tokens=len(p.generated[0]))
    assert 0 < p.counts["encoder"][0] <= 4 * len(p.rows[0].views)


def test_a_glimpse_costs_what_is_forecast_and_leaves_no_trace(host):
    host.learned["prefill", "glimpse_prune"] = untrained(make("prefill", "glimpse_prune"), host.widths).network
    pictures = [Pictures().lesson(number, 0) for number in range(2)]
    plan = Plan.of(prefill=("glimpse_prune", 0.25))
    p = host.open([lesson.image for lesson in pictures], [lesson.question for lesson in pictures])
    p.run(plan).decode(max_new_tokens=3)
    for row in range(2):
        assert p.ledger[row] == host.forecast(plan, p.rows[row].shape, new_tokens=len(p.generated[row]))
        words = p.rows[row].shape.n_text
        assert p.cached[row] == [words + p.counts["prefill"][row]] * host.decoder_depth
    del host.learned["prefill", "glimpse_prune"]


def test_the_recipe_teaches_a_glimpse(host, tmp_path):
    run = Run(host, "glimpse_prune", Pictures(), Settings(0, steps_b=2, batch=2, held_out=2), tmp_path)
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.train()
    assert all(not torch.equal(before[key], value) for key, value in run.network.state_dict().items() if "leave" in key)

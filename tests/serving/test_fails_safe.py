"""Whatever goes wrong, the request gets the model's own answer, the reason is counted, and nothing is raised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.compressors.outside.visionzip import VisionZip
from foveate.controller import Normalisation
from foveate.controller.observation import Layout
from foveate.models.features import TOKEN_FEATURES
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.serving import deciding
from foveate.serving.gate import Gate

ZIP = Plan.of(outside=("visionzip", 0.25))
EARLY = Plan.of(input=("downsample", 0.25), prefill=("fastv", 0.5))


@pytest.fixture
def own(host, inputs):
    """The model's own ids for the batch."""
    return host.model.generate(**inputs, max_new_tokens=5, do_sample=False)


def poisoned(monkeypatch, group, rows=None):
    """Makes one group of token features NaN, in these rows of a full batch."""
    real = deciding.reveal

    def reveal(p, at):
        found = real(p, at)
        if at == group:
            for row in range(len(found)) if rows is None else rows:
                found[row][0] = np.nan
        return found

    monkeypatch.setattr(deciding, "reveal", reveal)


def test_a_feature_that_is_no_number_leaves_the_row_uncompressed(monkeypatch, host, make_artefact, inputs, own):
    poisoned(monkeypatch, "encoder")
    gate = Gate(host, None, make_artefact(ZIP))
    assert torch.equal(gate.generate(**inputs, max_new_tokens=5), own)
    assert gate.counters == {"nan": 4, "rows": 4}
    assert {record.plan for record in gate.last} == {UNCOMPRESSED}


def test_what_was_compressed_before_the_fault_is_answered_anew(monkeypatch, host, make_artefact, inputs, own):
    poisoned(monkeypatch, "layer1")
    gate = Gate(host, None, make_artefact(EARLY))
    assert torch.equal(gate.generate(**inputs, max_new_tokens=5), own)
    for record in gate.last:
        assert (record.plan, record.reason) == (UNCOMPRESSED, "nan")
        assert record.decisions[0][:2] == ("input", EARLY["input"])
        assert record.share > 1, "the abandoned pass is on the bill"


def test_only_the_faulty_row_falls_back(monkeypatch, host, make_artefact, inputs, own):
    poisoned(monkeypatch, "encoder", rows=[2])
    gate = Gate(host, None, make_artefact(ZIP))
    ids = gate.generate(**inputs, max_new_tokens=5)
    assert [record.reason for record in gate.last] == ["policy", "policy", "nan", "policy"]
    assert torch.equal(ids[2, : own.shape[1]], own[2, : ids.shape[1]])
    assert [record.plan == ZIP for record in gate.last] == [True, True, False, True]


def test_features_beyond_the_training_range_leave_the_row_uncompressed(host, make_artefact, inputs, own):
    size = Layout.of(TOKEN_FEATURES).size
    zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
    narrow = make_artefact(ZIP, normalisation=Normalisation(zeros, ones, zeros - 2e6, zeros - 1e6))
    gate = Gate(host, None, narrow)
    assert torch.equal(gate.generate(**inputs, max_new_tokens=5), own)
    assert gate.counters == {"outside": 4, "rows": 4}


def test_with_a_hard_limit_an_unjudged_row_gets_the_mildest_plan_within_it(host, make_artefact, batch):
    size = Layout.of(TOKEN_FEATURES).size
    zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
    narrow = make_artefact(ZIP, normalisation=Normalisation(zeros, ones, zeros - 2e6, zeros - 1e6))
    full = host.forecast(UNCOMPRESSED, host.prompt_shape(20), 5).total
    gate = Gate(host, None, narrow, max_flops=0.6 * full)
    gate.answer(*batch, 5)
    for record in gate.last:
        assert record.reason == "outside" and record.plan.active
        assert record.ledger.total <= 0.6 * full


def test_an_exception_in_a_compressor_costs_only_its_row(monkeypatch, host, make_artefact, batch, inputs, own):
    real, bad = VisionZip.plan, host.open(*batch).rows[1].seed

    def plan(self, tokens, count):
        if bad in tokens.seed.tolist():
            raise RuntimeError("broken method")
        return real(self, tokens, count)

    monkeypatch.setattr(VisionZip, "plan", plan)
    gate = Gate(host, None, make_artefact(ZIP))
    ids = gate.generate(images=batch[0], questions=batch[1], max_new_tokens=5)
    assert [record.reason for record in gate.last] == ["policy", "compressor", "policy", "policy"]
    assert torch.equal(ids[1, : own.shape[1]], own[1, : ids.shape[1]])
    monkeypatch.undo()
    assert torch.equal(
        Gate(host, None, make_artefact(ZIP)).generate(**inputs, max_new_tokens=5)[[0, 2, 3]], ids[[0, 2, 3]]
    )


def test_a_controller_that_breaks_is_no_exception_either(monkeypatch, host, make_artefact, inputs, own):
    gate = Gate(host, None, make_artefact(ZIP))

    def network(z):
        raise ZeroDivisionError("broken network")

    monkeypatch.setattr(gate.controller, "_network", network)
    assert torch.equal(gate.generate(**inputs, max_new_tokens=5), own)
    assert gate.counters == {"error": 4, "rows": 4}


def test_a_missed_deadline_leaves_what_is_not_decided_uncompressed(host, make_artefact, inputs, own):
    gate = Gate(host, None, make_artefact(ZIP), deadline=1e-9)
    assert torch.equal(gate.generate(**inputs, max_new_tokens=5), own)
    assert gate.counters == {"deadline": 4, "rows": 4}
    in_time = Gate(host, None, make_artefact(ZIP), deadline=60.0)
    in_time.generate(**inputs, max_new_tokens=5)
    assert in_time.counters == {"policy": 4, "rows": 4}


class TestLeftToTheModel:
    """Calls that the gate does not decide on come out as if it were not there."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"return_dict_in_generate": True},
            {"cache_implementation": "static"},
            {"output_scores": True, "return_dict_in_generate": True},
        ],
    )
    def test_settings_that_a_compressed_cache_cannot_have(self, host, make_artefact, inputs, settings):
        gate = Gate(host, None, make_artefact(ZIP))
        got = gate.generate(**inputs, max_new_tokens=5, **settings)
        expected = host.model.generate(**inputs, max_new_tokens=5, **settings)
        if settings.get("return_dict_in_generate"):
            got, expected = got.sequences, expected.sequences
        assert torch.equal(got, expected)
        assert gate.counters == {"unsupported": 4, "rows": 4}
        assert gate.last[0].reason == "unsupported" and gate.last[0].share == 1
        assert gate.last[0].why.startswith(next(iter(settings)))

    def test_sampling_that_cannot_be_followed_draws_as_the_model_does(self, host, make_artefact, inputs):
        settings = {"do_sample": True, "max_new_tokens": 5, "cache_implementation": "static"}
        gate = Gate(host, None, make_artefact(ZIP))
        torch.manual_seed(0)
        got = gate.generate(**inputs, **settings)
        torch.manual_seed(0)
        assert torch.equal(got, host.model.generate(**inputs, **settings))

    def test_settings_that_say_nothing_are_decided(self, host, make_artefact, inputs):
        gate = Gate(host, None, make_artefact(ZIP))
        neutral = {"num_beams": 1, "do_sample": False, "temperature": 0.2, "repetition_penalty": 1.0, "use_cache": True}
        gate.generate(**inputs, max_new_tokens=2, **neutral)
        assert gate.counters == {"policy": 4, "rows": 4}

    def test_text_without_a_picture(self, host, make_artefact):
        gate, ids = Gate(host, None, make_artefact(ZIP)), torch.tensor([[1, 8, 9]])
        got = gate.generate(input_ids=ids, max_new_tokens=3)
        assert torch.equal(got, host.model.generate(input_ids=ids, max_new_tokens=3))
        assert gate.counters["unsupported"] == 1

    def test_a_picture_that_no_prompt_shows(self, host, make_artefact, batch):
        gate, processor = Gate(host, None, make_artefact(ZIP)), host.inputs.processor
        made = dict(processor(images=batch[0][:1], text="<image> what is this ?", return_tensors="pt"))
        ids, mask = made["input_ids"].repeat(2, 1), made["attention_mask"].repeat(2, 1)
        with pytest.raises(ValueError, match="mage"):  # of the model: two prompts, one picture
            gate.generate(input_ids=ids, attention_mask=mask, pixel_values=made["pixel_values"], max_new_tokens=3)
        twice = made["pixel_values"].repeat(2, 1, 1, 1)
        with pytest.raises(ValueError, match="mage"):
            gate.generate(**made | {"pixel_values": twice}, max_new_tokens=3)
        assert gate.counters == {}

    def test_pixels_that_are_no_picture(self, host, make_artefact, inputs):
        gate = Gate(host, None, make_artefact(ZIP))
        for wrong in (torch.randn_like(inputs["pixel_values"]), inputs["pixel_values"] + 5):
            odd = dict(inputs, pixel_values=wrong)
            assert torch.equal(gate.generate(**odd, max_new_tokens=3), host.model.generate(**odd, max_new_tokens=3))
        assert gate.counters == {"unsupported": 8, "rows": 8}

    def test_what_the_model_refuses_is_refused_as_the_model_does(self, host, make_artefact, inputs):
        gate, wrong = Gate(host, None, make_artefact(ZIP)), dict(inputs, pixel_values=inputs["pixel_values"][:3])
        with pytest.raises(Exception) as alone:
            host.model.generate(**wrong, max_new_tokens=2)
        with pytest.raises(type(alone.value)) as gated:
            gate.generate(**wrong, max_new_tokens=2)
        assert str(gated.value) == str(alone.value)

    def test_pictures_with_such_settings(self, host, make_artefact, batch, inputs):
        gate = Gate(host, None, make_artefact(ZIP))
        got = gate.generate(images=batch[0], questions=batch[1], cache_implementation="static", max_new_tokens=3)
        assert torch.equal(got, host.model.generate(**inputs, cache_implementation="static", max_new_tokens=3))


def test_two_threads_keep_their_own_last(host, make_artefact, batch):
    from threading import Thread

    gate, seen = Gate(host, None, make_artefact(ZIP)), {}

    def ask(n):
        for _ in range(3):
            gate.answer(batch[0][:n], batch[1][:n], 2)
        seen[n] = len(gate.last)

    threads = [Thread(target=ask, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1: 1, 2: 2, 3: 3} and gate.last == []
    assert gate.counters == {"policy": 18, "rows": 18}

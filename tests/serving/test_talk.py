"""Sampling, beams and conversations through the gate."""

from __future__ import annotations

import pytest
import torch

from foveate.models.errors import BadInput
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.serving.deciding import Course
from foveate.serving.gate import Gate
from foveate.serving.requests import Unsupported, tensors

pytestmark = pytest.mark.fast

BOTH = Plan.of(outside=("visionzip", 0.5), prefill=("fastv", 0.5))
ASKED = ["what is this ?", "left ?", "is the thing red or blue ?"]
SETTINGS = [
    {"do_sample": True, "temperature": 0.9},
    {"num_beams": 2},
    {"num_beams": 3, "num_return_sequences": 2},
    {"repetition_penalty": 2.0},
    {"min_new_tokens": 3},
    {"min_length": 27, "max_length": 32},
    {"eos_token_id": 7},
    {"suppress_tokens": [9]},
    {"no_repeat_ngram_size": 1},
]


class TestSettings:
    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
    def test_without_compression_they_are_the_models_own(self, host, make_artefact, inputs, settings):
        gate, settings = Gate(host, None, make_artefact(UNCOMPRESSED)), {"max_new_tokens": 5, **settings}
        if "max_length" in settings:
            del settings["max_new_tokens"]
        torch.manual_seed(0)
        got = gate.generate(**inputs, **settings)
        torch.manual_seed(0)
        assert torch.equal(got, host.model.generate(**inputs, **settings))
        assert gate.counters == {"policy": 4, "rows": 4}
        assert all(record.ledger.total > record.full for record in gate.last)  # by the decisions alone
        for record in gate.last:
            assert record.ledger.total * (1 - 1e-9) <= record.full + record.decision_share * record.full

    def test_compressed_beams_are_the_hosts_own_and_several_answers_stand_row_by_row(self, host, make_artefact, batch):
        gate, settings = Gate(host, None, make_artefact(BOTH)), {"num_beams": 3, "num_return_sequences": 2}
        p = host.open(*batch).run(BOTH)
        assert gate.answer(*batch, 5, **settings) == p.decode(max_new_tokens=5, **settings)
        assert len(p.generated) == 8 and len(gate.last) == 4
        assert all(record.plan == BOTH and record.share < 1 for record in gate.last)
        assert gate.generate(images=batch[0], questions=batch[1], max_new_tokens=5, **settings).shape[0] == 8

    def test_a_hard_limit_counts_every_beam(self, host, make_artefact, batch):
        full = host.forecast(UNCOMPRESSED, host.prompt_shape(20), 5).total
        gate = Gate(host, None, make_artefact(UNCOMPRESSED), max_flops=1.2 * full)
        gate.answer(*batch, 5, num_beams=3)
        for record in gate.last:
            assert record.ledger.total <= 1.2 * full or record.reason == "budget"

    def test_rows_answered_anew_keep_the_settings(self, monkeypatch, host, make_artefact, batch, inputs):
        gate = Gate(host, None, make_artefact(BOTH))
        monkeypatch.setattr(Course, "take", lambda course, *_: course.fall("error", redo=True))
        settings = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4}
        monkeypatch.setattr(gate._driver, "_ask", lambda *_: 1 / 0)
        assert torch.equal(gate.generate(**inputs, **settings), host.model.generate(**inputs, **settings))
        assert gate.counters == {"compressor": 4, "rows": 4}


class TestConversations:
    @pytest.mark.parametrize("plan", [UNCOMPRESSED, BOTH], ids=["whole", "compressed"])
    def test_later_questions_go_behind_what_is_left_of_the_picture(self, talking, make_artefact, batch, plan):
        gate = Gate(talking, None, make_artefact(plan, fingerprint=talking.fingerprint))
        talk, p = gate.talk(batch[0][0]), talking.open([batch[0][0]], ASKED[:1]).run(plan)
        for turn, question in enumerate(ASKED):
            p = p.follow([question]) if turn else p
            assert [talk.ask(question, 5)] == p.decode(max_new_tokens=5)
            assert gate.last == talk.records[-1:]
        assert [q for q, _ in talk.turns] == ASKED and {r.reason for r in talk.records} == {"policy"}
        totals = [record.ledger.total for record in talk.records]
        assert (
            totals == sorted(totals)
            and talk.records[-1].ledger.by_stage()["encoder"] == p.ledger[0].by_stage()["encoder"]
        )
        for record in talk.records:
            share = record.share - record.decision_share
            assert share == pytest.approx(1) if plan is UNCOMPRESSED else share < 0.9
        assert gate.counters == {"policy": 3, "rows": 3}

    def test_where_a_turn_fails_the_model_answers_on_the_whole_conversation(
        self, monkeypatch, talking, make_artefact, batch
    ):
        gate = Gate(talking, None, make_artefact(BOTH, fingerprint=talking.fingerprint))
        talk = gate.talk(batch[0][1])
        first = talk.ask(ASKED[0], 5)
        p = talking.open([batch[0][1]], ASKED[:1]).follow([ASKED[1]], [first])
        monkeypatch.setattr("foveate.models.turns.Continuation", None)
        inputs = tensors(talking, p.rows)
        ids = talking.model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert talk.ask(ASKED[1], 5) == talking.inputs.text(ids.tolist())
        assert [(r.reason, r.plan) for r in talk.records] == [("policy", BOTH), ("compressor", UNCOMPRESSED)]
        assert talk.records[1].share > 1  # the prompt ran twice

    def test_what_cannot_be_asked_is_refused_and_leaves_the_conversation_as_it_is(self, talking, make_artefact, batch):
        gate = Gate(talking, None, make_artefact(BOTH, fingerprint=talking.fingerprint))
        talk = gate.talk(batch[0][0])
        talk.ask(ASKED[0], 3)
        with pytest.raises(Unsupported, match="num_return_sequences = 2"):
            talk.ask(ASKED[1], 3, do_sample=True, num_return_sequences=2)
        with pytest.raises(Unsupported, match="static"):
            talk.ask(ASKED[1], 3, cache_implementation="static")
        with pytest.raises(BadInput, match="<image>"):
            talk.ask("<image> ?", 3)
        assert len(talk.turns) == len(talk.records) == 1
        talk.ask(ASKED[1], 3)
        assert len(talk.turns) == 2

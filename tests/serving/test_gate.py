"""The gate: equal to the model where nothing is compressed, equal to the plan where something is, off afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.controller import Controller, ControllerError, save
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan
from foveate.serving.gate import Gate

ZIP = Plan.of(outside=("visionzip", 0.25))
BOTH = Plan.of(outside=("visionzip", 0.5), prefill=("fastv", 0.5))


def plain(host, **arguments):
    """The model's own greedy answer."""
    return host.model.generate(**arguments, do_sample=False)


def by_plan(host, batch, plan, n):
    """Each row's ids under a plan, straight from the host."""
    p = host.open(*batch).run(plan)
    p.decode(max_new_tokens=n)
    return p.generated


class TestEqualToTheModel:
    def test_without_compression_a_padded_batch_gives_the_models_own_ids(self, host, make_artefact, inputs):
        gate = Gate(host, None, make_artefact(UNCOMPRESSED))
        assert torch.equal(gate.generate(**inputs, max_new_tokens=6), plain(host, **inputs, max_new_tokens=6))
        assert [record.plan for record in gate.last] == [UNCOMPRESSED] * 4
        assert gate.counters == {"policy": 4, "rows": 4}

    def test_without_compression_a_single_row_gives_the_models_own_ids(self, host, make_artefact, batch, inputs):
        gate = Gate(host, None, make_artefact(UNCOMPRESSED))
        row = {"input_ids": inputs["input_ids"][1:2], "pixel_values": inputs["pixel_values"][1:2]}
        assert torch.equal(gate.generate(**row, max_length=60), plain(host, **row, max_length=60))
        assert torch.equal(gate.generate(row["input_ids"], pixel_values=row["pixel_values"]), plain(host, **row))

    def test_pictures_and_questions_give_the_same_as_tensors(self, host, make_artefact, batch, inputs):
        gate = Gate(host, None, make_artefact(BOTH))
        images, questions = batch
        ids = gate.generate(images=images, questions=questions, max_new_tokens=5)
        assert torch.equal(ids, gate.generate(**inputs, max_new_tokens=5))
        texts = [host.inputs.text(row[inputs["input_ids"].shape[1] :].tolist()) for row in ids]
        assert gate.answer(images, questions, 5) == texts

    def test_half_precision_pixels_are_read_back_exactly(self, host, make_artefact, inputs):
        gate = Gate(host, None, make_artefact(UNCOMPRESSED))
        wide = gate.generate(**inputs, max_new_tokens=4)
        narrow = dict(inputs, pixel_values=inputs["pixel_values"].to(torch.float16))
        assert torch.equal(gate.generate(**narrow, max_new_tokens=4), wide)
        assert gate.counters["unsupported"] == 0


class TestPlans:
    @pytest.mark.parametrize("plan", [ZIP, BOTH, BLIND, Plan.of(input=("downsample", 0.25), decode=("look_m", 0.5))])
    def test_the_answer_is_that_of_the_decided_plan(self, host, make_artefact, batch, inputs, plan):
        gate = Gate(host, None, make_artefact(plan))
        ids = gate.generate(**inputs, max_new_tokens=6)
        longest = inputs["input_ids"].shape[1]
        for row, (own, record) in enumerate(zip(by_plan(host, batch, plan, 6), gate.last, strict=True)):
            assert ids[row, longest : longest + len(own)].tolist() == own
            assert set(ids[row, longest + len(own) :].tolist()) <= {host.inputs.tokenizer.pad_token_id}
            assert (record.plan, record.reason) == (plan, "policy")

    def test_the_record_holds_the_ledger_of_the_plan_and_of_the_decisions(self, host, make_artefact, batch):
        gate = Gate(host, None, make_artefact(ZIP))
        answer = gate.answer(*batch, 6)
        p = host.open(*batch).run(ZIP)
        assert p.decode(max_new_tokens=6) == answer
        for own, record in zip(p.ledger, gate.last, strict=True):
            mine = record.ledger.by_stage()
            decided = mine.pop("features") + mine.pop("controller")
            assert mine == own.by_stage()
            assert record.ledger.total == own.total + decided
            assert record.decision_share == decided / record.full and 0 < record.share
            assert record.ledger.tokens["outside"] == 4 and record.layers == (4,) * host.decoder_depth

    def test_a_row_never_depends_on_its_batch_mates(self, host, make_artefact, batch):
        for seed in range(4):
            gate = Gate(host, None, make_artefact(seed=seed))
            together = gate.answer(*batch, 4)
            records = gate.last
            for row, (image, question) in enumerate(zip(*batch, strict=True)):
                assert gate.answer([image], [question], 4) == [together[row]]
                assert gate.last[0].decisions == records[row].decisions
                assert gate.last[0].ledger == records[row].ledger

    def test_the_budget_dial_is_the_controllers(self, host, make_artefact):
        made = make_artefact()
        assert Gate(host, None, made, budget=0.4).dials.lam == Controller(made, budget=0.4).lam
        assert Gate(host, None, made).dials.lam == made.lam
        with pytest.raises(ValueError, match=r"0\.01"):
            Gate(host, None, made, budget=0.01)

    def test_a_controller_of_whole_plans_decides_once(self, host, make_whole, batch):
        plans = (UNCOMPRESSED, BLIND, ZIP, BOTH)
        made = make_whole(plans, [0.9, 0.6, 0.8, 0.7], [1.0, 0.1, 0.4, 0.3])
        for lam, expected in ((0.01, UNCOMPRESSED), (0.3, ZIP), (1.0, BLIND)):
            gate = Gate(host, None, made, lam=lam)
            gate.answer(*batch, 3)
            assert {record.plan for record in gate.last} == {expected}
            assert {record.reason for record in gate.last} == {"regression"}
            assert "features" not in gate.last[0].ledger.by_stage()

    def test_kept_positions_are_those_of_the_last_layer(self, host, make_artefact, batch):
        gate = Gate(host, None, make_artefact(BOTH))
        gate.answer(*batch, 2)
        ((grid, positions),) = gate.last[0].kept
        assert grid == (1, 4, 4) and len(positions) == 4 == gate.last[0].layers[-1]
        assert sorted(set(positions)) == list(positions) and -1 <= positions[0] and positions[-1] < 16


class TestHardLimit:
    def test_no_decided_row_exceeds_it_whatever_the_controller_wants(self, host, make_artefact, batch):
        full = host.forecast(UNCOMPRESSED, host.prompt_shape(20), 5).total
        for seed in range(2):
            for share in (0.5, 0.7, 1.3):
                gate = Gate(host, None, make_artefact(seed=seed), max_flops=share * full)
                gate.answer(*batch, 5)
                for record in gate.last:
                    assert record.reason == "policy"
                    assert record.ledger.total <= share * full

    def test_it_forces_plans_on_a_controller_that_wants_none(self, host, make_artefact, batch):
        full = host.forecast(UNCOMPRESSED, host.prompt_shape(20), 5).total
        gate = Gate(host, None, make_artefact(UNCOMPRESSED), max_flops=0.6 * full)
        gate.answer(*batch, 5)
        assert all(record.plan.active for record in gate.last)

    def test_where_no_plan_is_within_it_the_answer_comes_first(self, host, make_artefact, batch, inputs):
        gate = Gate(host, None, make_artefact(ZIP), max_flops=10.0)
        assert torch.equal(gate.generate(**inputs, max_new_tokens=4), plain(host, **inputs, max_new_tokens=4))
        assert gate.counters == {"budget": 4, "rows": 4}


class TestPatching:
    def test_the_models_own_method_goes_through_the_gate_inside_the_block_only(self, host, make_artefact, inputs):
        gate, model = Gate(host, None, make_artefact(ZIP)), host.model
        before = plain(host, **inputs, max_new_tokens=4)
        with gate as same:
            assert same is gate
            inside = model.generate(**inputs, max_new_tokens=4)
        assert torch.equal(inside, gate.generate(**inputs, max_new_tokens=4))
        assert "generate" not in vars(model)
        assert torch.equal(plain(host, **inputs, max_new_tokens=4), before)

    def test_it_is_off_again_after_an_exception(self, host, make_artefact):
        with pytest.raises(RuntimeError, match="inside"), Gate(host, None, make_artefact(ZIP)):
            raise RuntimeError("inside")
        assert "generate" not in vars(host.model)

    def test_blocks_nest_and_what_stood_there_before_comes_back(self, host, make_artefact, inputs):
        one, two = Gate(host, None, make_artefact(ZIP)), Gate(host, None, make_artefact(BLIND))
        with one:
            with two:
                host.model.generate(**inputs, max_new_tokens=2)
            host.model.generate(**inputs, max_new_tokens=2)
        assert {record.plan for record in two.last} == {BLIND} and {record.plan for record in one.last} == {ZIP}
        assert "generate" not in vars(host.model)

    def test_the_model_is_as_it_was(self, host, make_artefact, inputs):
        plain(host, **inputs, max_new_tokens=3)  # transformers puts hooks of its own on
        before = {name: value.clone() for name, value in host.model.state_dict().items()}
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in host.model.modules()]
        Gate(host, None, make_artefact(BOTH)).generate(**inputs, max_new_tokens=3)
        assert all(torch.equal(value, before[name]) for name, value in host.model.state_dict().items())
        assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in host.model.modules()] == hooks


class TestConstruction:
    def test_a_loaded_model_and_its_processor_are_the_host_of_its_folder(
        self, folder, host, make_artefact, tmp_path, inputs
    ):
        save(tmp_path / "policy.fov", make_artefact(BOTH))
        model = AutoModelForImageTextToText.from_pretrained(folder)
        gate = Gate(model, AutoProcessor.from_pretrained(folder), tmp_path / "policy.fov", lam=0.1)
        assert gate.host.fingerprint == host.fingerprint and gate.host.text is not None
        assert torch.equal(
            gate.generate(**inputs, max_new_tokens=3),
            Gate(host, None, make_artefact(BOTH)).generate(**inputs, max_new_tokens=3),
        )

    def test_a_controller_for_another_model_is_refused(self, host, make_artefact, tmp_path):
        other = make_artefact(fingerprint="cd" * 32, host="another")
        save(tmp_path / "other.fov", other)
        for controller in (tmp_path / "other.fov", other, Controller(other)):
            with pytest.raises(ControllerError, match=r"made for host 'another' \(cdcdcdcdcdcd"):
                Gate(host, None, controller)

    def test_a_damaged_file_and_no_controller_are_refused(self, host, make_artefact, tmp_path):
        path = tmp_path / "policy.fov"
        save(path, make_artefact())
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        with pytest.raises(ControllerError, match=r"policy\.fov: altered"):
            Gate(host, None, path)
        with pytest.raises(ControllerError, match="NoneType"):
            Gate(host)

    def test_a_family_without_a_host_and_a_missing_processor_are_refused(self, host, make_artefact):
        with pytest.raises(UnsupportedModel, match="Linear"):
            Gate(torch.nn.Linear(2, 2), None, make_artefact())
        with pytest.raises(UnsupportedModel, match="processor"):
            Gate(host.model, None, make_artefact())

    @pytest.mark.parametrize("dials", [{"max_flops": 0}, {"max_flops": float("nan")}, {"deadline": -1}, {"lam": 0}])
    def test_a_dial_out_of_range_is_refused(self, host, make_artefact, dials):
        with pytest.raises(ValueError, match=next(iter(dials))):
            Gate(host, None, make_artefact(), **dials)

    def test_pictures_that_cannot_be_put_are_the_callers_mistake(self, host, make_artefact):
        with pytest.raises(BadInput, match="image 0"):
            Gate(host, None, make_artefact()).answer([np.zeros((4, 4), np.uint8)], ["what ?"])

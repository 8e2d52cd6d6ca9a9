"""The recipe for a method between decoder layers, where there are no features to start from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from noise_lessons import Noise

from foveate.models import learned, load_host
from foveate.models.distilling.pairs import Batch
from foveate.models.distilling.recipe import Run
from foveate.models.distilling.settings import Settings
from foveate.plans.plan import Plan

SMALL = Settings(steps_a=3, steps_b=3, batch=4, held_out=6, save_every=2)


def values(run):
    return {name: value.clone() for name, value in run.network.state_dict().items()}


class TestInsideTheDecoder:
    """A method whose choice lies between decoder layers: there are no features to start from."""

    NUMBERS = Settings(steps_a=9, steps_b=16, batch=4, held_out=6, save_every=3)

    def test_the_loss_falls_and_only_the_routers_learn(self, fresh, tiny, tmp_path):
        seen, fixed = [], {key: value.clone() for key, value in fresh.model.state_dict().items()}
        run = Run(fresh, "p_mod", Noise(tiny.questions, period=4), self.NUMBERS, tmp_path / "work")
        run.train([seen.append])
        assert [(p.part, p.step) for p in seen] == [("answers", step + 1) for step in range(16)]
        assert set(seen[0].losses) == {"kl", "cross_entropy", "loss"}
        assert seen[0].losses["loss"] == pytest.approx(seen[0].losses["kl"] + 0.5 * seen[0].losses["cross_entropy"])
        by_keep = {keep: [p.losses["loss"] for p in seen if p.keep == keep] for keep in {p.keep for p in seen}}
        falls = [np.mean(each[-(len(each) // 2) :]) < each[0] for each in by_keep.values() if len(each) > 1]
        assert falls and sum(falls) > len(falls) / 2
        assert (values(run)["bias"] != 0).tolist() == [True, True, False]  # nobody reads what leaves the last layer
        assert all(torch.equal(fixed[key], value) for key, value in fresh.model.state_dict().items())
        assert all(p.grad is None for p in fresh.model.parameters())

    def test_gradients_come_through_the_layers_behind_a_choice(self, fresh, lessons, tmp_path):
        run = Run(fresh, "p_mod", lessons, SMALL, tmp_path)
        batch = Batch(fresh, "prefill", [lessons.lesson(i, 0) for i in range(3)])
        student = batch.student("prefill", run.method, [0.25] * 3, learning=True)
        student.logits.square().sum().backward()
        assert (run.network.weight.grad.abs().amax(dim=1) > 0).tolist() == [True, True, False]
        assert (run.network.bias.grad != 0).tolist() == [True, True, False]
        silent = batch.student("prefill", run.method, [0.25] * 3)
        assert not silent.logits.requires_grad and torch.allclose(silent.logits, student.logits, atol=1e-5)

    def test_a_run_that_was_cut_gives_the_same_weights(self, fresh, lessons, tmp_path):
        numbers = replace(self.NUMBERS, steps_b=5, save_every=2)
        whole = Run(fresh, "p_mod", lessons, numbers, tmp_path / "whole")
        whole.train()

        def stop(progress):
            if progress.step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Run(fresh, "p_mod", lessons, numbers, tmp_path / "cut").train([stop])
        again = Run(fresh, "p_mod", lessons, numbers, tmp_path / "cut", resume=True)
        assert (again.part, again.step) == ("answers", 2)
        again.train()
        assert all(torch.equal(value, values(again)[name]) for name, value in values(whole).items())

    def test_what_came_out_runs_and_is_judged_at_what_a_layer_gets_in_the_mean(self, fresh, folders, lessons, tmp_path):
        assert "distill" in fresh.supports("prefill", "p_mod")
        run = Run(fresh, "p_mod", lessons, SMALL, tmp_path / "work")
        run.train()
        path, figures = run.finish(tmp_path / "out")
        assert learned.about(path)["recipe"] == "answers" and path.name == "prefill-p_mod.safetensors"
        least = {1: 8.25, 4: 9.0, 9: 11.5}  # (16 + 12 + 4 + 1) / 4, and so on
        assert {round(16 * f.keep): f.count for f in figures} == least and all(f.rows == 6 for f in figures)
        host = load_host(folders(text_tower=True), learned=tmp_path / "out")
        assert host.supports("prefill", "p_mod") is None
        p = host.open([lessons.lesson(0, 0).image], [lessons.lesson(0, 0).question])
        p.run(Plan.of(prefill=("p_mod", 0.25)))
        assert p.counts["layers"] == [[16, 12, 4, 4]] and len(p.decode(max_new_tokens=2)) == 1

    def test_no_step_through_the_decoder_is_no_training(self, fresh, lessons, tmp_path):
        with pytest.raises(ValueError, match="steps_b: is 0, and p_mod learns from answers alone"):
            Run(fresh, "p_mod", lessons, replace(SMALL, steps_b=0), tmp_path)

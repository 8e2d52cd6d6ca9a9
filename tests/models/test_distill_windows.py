"""The recipe for summary tokens: answers alone teach them, through all layers of all windows, gently at first."""

import numpy as np
import pytest
import torch

from foveate.models import learned, load_host
from foveate.models.distilling.lessons import Lesson
from foveate.models.distilling.pairs import Batch
from foveate.models.distilling.recipe import Run
from foveate.models.distilling.settings import Settings
from foveate.plans.plan import Plan


class Films:
    """Random films of six frames."""

    label = "films"

    def __init__(self, questions, period=1000):
        self.questions, self.period = questions, period

    def lesson(self, number, seed):
        shown = np.random.default_rng([seed, number % self.period]).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        return Lesson(shown, self.questions[number % len(self.questions)], "red")

    def held_out(self, count):
        return [self.lesson(900 + i, 0) for i in range(count)]


def values(run):
    return {name: value.detach().clone() for name, value in run.network.state_dict().items()}


@pytest.fixture
def films(tiny):
    return Films(tiny.questions)


def test_gradients_reach_every_layers_projections_and_the_token(fresh, films, tmp_path):
    run = Run(fresh, "video_xl", films, Settings(0, 2, 2), tmp_path)
    with torch.no_grad():
        for value in run.network.up.values():
            value.normal_(std=0.1)  # away from zeros that hide what lies behind them
    batch = Batch(fresh, "prefill", [films.lesson(i, 0) for i in range(2)])
    student = batch.student("prefill", run.method, [0.25, 0.125], learning=True)
    student.logits.square().sum().backward()
    for name, value in run.network.named_parameters():
        learns = [bool(layer.abs().max() > 0) for layer in value.grad] if name != "token" else [True]
        assert value.grad.isfinite().all() and value.grad.any()
        # nobody reads what leaves the last layer, so what a summary token asks there is of no use
        assert learns == ([True] * 3 + [False] if name.endswith("q") else [True] * len(learns)), name
    silent = batch.student("prefill", run.method, [0.25, 0.125])
    assert not silent.logits.requires_grad and torch.allclose(silent.logits, student.logits, atol=1e-5)


def test_a_quarter_of_the_steps_is_gentle_then_every_ratio_comes(fresh, films, tmp_path):
    seen = []
    run = Run(fresh, "video_xl", films, Settings(5, 24, 1, held_out=1), tmp_path)
    run.train([seen.append])
    assert [step.keep for step in seen[:6]] == [0.5] * 6 and len(seen) == 24  # no stage of features
    assert {step.keep for step in seen[6:]} == {1 / 2, 1 / 4, 1 / 8, 1 / 16}


def test_only_summary_tokens_learn_and_the_loss_falls(fresh, folders, tiny, films, tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.compressors.prefill.video_xl.VideoXL.gentle", 1.0)  # one ratio, to compare losses
    seen, fixed = [], {key: value.clone() for key, value in fresh.model.state_dict().items()}
    run = Run(fresh, "video_xl", Films(tiny.questions, period=4), Settings(0, 16, 4, held_out=4), tmp_path / "work")
    first = values(run)
    run.train([seen.append])
    losses = [step.losses["loss"] for step in seen]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2])
    assert set(seen[0].losses) == {"kl", "cross_entropy", "loss"}
    assert all(not value.equal(first[name]) for name, value in values(run).items())
    assert all(torch.equal(fixed[key], value) for key, value in fresh.model.state_dict().items())
    path, figures = run.finish(tmp_path / "out")
    assert learned.about(path)["recipe"] == "answers" and path.name == "prefill-video_xl.safetensors"
    assert {round(f.keep * 96): f.count for f in figures} == {n: n for n in (6, 12, 24, 48)}  # pooling can give these
    host = load_host(folders(text_tower=True), learned=tmp_path / "out")
    assert host.supports("prefill", "video_xl") is None
    p = host.open([films.lesson(0, 0).image], [tiny.questions[0]]).run(Plan.of(prefill=("video_xl", 0.25)))
    assert p.counts["layers"] == [[24] * 4] and len(p.decode(max_new_tokens=2)) == 1


def test_weights_from_before_the_size_of_heads_was_told_still_fit(fresh, films, tmp_path):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    run = Run(fresh, "video_xl", films, Settings(0, 1, 1, held_out=1), tmp_path / "work")
    path = learned.save(tmp_path / "out", fresh, "prefill", "video_xl", run.network, {})
    with safe_open(path, framework="pt") as file:
        told, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    widths = json.loads(told["widths"])
    assert widths.pop("head_dim") == 8
    save_file(tensors, path, metadata={**told, "widths": json.dumps(widths)})
    assert learned.read(path, fresh) is not None
    save_file(tensors, path, metadata={**told, "widths": json.dumps({**widths, "head_dim": 16})})
    with pytest.raises(learned.WrongWeights, match="is for another model"):
        learned.read(path, fresh)

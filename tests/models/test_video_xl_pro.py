"""Video-XL-Pro in a host: words as a signal, both stages in one plan, and what teaches the selector."""

import numpy as np
import pytest
import torch

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.distilling.further import FURTHER
from foveate.models.distilling.lessons import Lesson
from foveate.models.distilling.pairs import Batch
from foveate.models.distilling.recipe import Run
from foveate.models.distilling.settings import Settings
from foveate.plans.plan import Plan

KEYS = (("projector", "video_xl_pro"), ("prefill", "video_xl_pro"))


def film(tiny, first=0, t=8):
    return np.stack([tiny.picture(first + i) for i in range(t)])


def taught(host):
    for key in KEYS:
        host.learned[key] = untrained(make(*key), host.widths, host.matrices()).network
    return host


def test_both_stages_run_in_one_plan_at_the_cost_that_was_told(fresh, tiny):
    host, plan = taught(fresh), Plan.of(projector=("video_xl_pro", 1 / 16), prefill=("video_xl_pro", 0.625))
    films = [film(tiny), film(tiny, 7)]
    together = host.open(films, tiny.questions[:2]).run(plan)
    together.decode(max_new_tokens=3)
    assert together.counts["projector"] == [8, 8] and together.counts["layers"] == [[8, 5, 5, 5]] * 2
    for row in range(2):
        words = len(together.generated[row])
        assert host.forecast(plan, together.shapes[row], new_tokens=words) == together.ledger[row]
        alone = host.open(films[row : row + 1], tiny.questions[row : row + 1]).run(plan)
        alone.decode(max_new_tokens=3)
        assert alone.generated[0] == together.generated[row]
        assert torch.allclose(alone.logits[0], together.logits[row], atol=1e-5)


@torch.no_grad()
def test_words_are_all_entries_that_show_nothing_and_other_words_choose_others(fresh, tiny):
    host = taught(fresh)
    method = host.make("prefill", "video_xl_pro")
    p = host.open([film(tiny)] * 2, tiny.questions[:2])
    p.peek()
    given, stream = p.ask.in_prefill(p.opened, method, torch.arange(2), 1), p.opened.caches[0].stream
    for row in range(2):
        words = host.decoder.embed(torch.as_tensor(p.rows[row].ids)[torch.as_tensor(p.rows[row].text)])
        assert torch.allclose(given["spoken"][row], method.spoken(words), atol=1e-5)
        assert torch.equal(given["hidden_states"][row], stream.x[row][stream.visual[row]])
    assert not torch.allclose(given["spoken"][0], given["spoken"][1], atol=1e-3)
    scores = (given["hidden_states"] @ given["spoken"][..., None])[..., 0]
    p.prefill(method, 0.25)
    for row, score in enumerate(scores):
        left = p.caches[-1].stream
        assert left.position[row][left.visual[row]].tolist() == score.topk(32).indices.sort().values.tolist()


class Films:
    """Random films whose answers are told or not."""

    label = "films"

    def __init__(self, questions):
        self.questions = questions

    def lesson(self, number, seed):
        shown = np.random.default_rng([seed, number]).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        return Lesson(shown, self.questions[number % 4], ("red", None)[number % 2])

    def held_out(self, count):
        return [self.lesson(10**6 + i, 0) for i in range(count)]


def test_the_recipe_teaches_the_selector_and_leaves_the_host_alone(folders, tiny, tmp_path):
    host, seen = load_host(folders(text_tower=True)), []
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    run = Run(host, "prefill:video_xl_pro", Films(tiny.questions), Settings(0, 4, 4, held_out=4), tmp_path / "work")
    first = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.train([seen.append])
    assert set(seen[0].losses) == {"kl", "cross_entropy", "attended", "loss"}
    assert not [name for name, value in run.network.state_dict().items() if value.equal(first[name])]
    assert all(value.equal(before[name]) for name, value in host.model.state_dict().items())
    path, figures = run.finish(tmp_path / "out")
    assert path.name == "prefill-video_xl_pro.safetensors" and figures
    host = load_host(folders(text_tower=True), learned=tmp_path / "out")
    p = host.open([film(tiny, t=4)], tiny.questions[:1]).run(Plan.of(prefill=("video_xl_pro", 0.25)))
    assert p.counts["layers"] == [[64, 16, 16, 16]]


def test_scores_learn_to_be_the_attention_that_answers_pay(fresh, tiny):
    method = untrained(make("prefill", "video_xl_pro"), fresh.widths)
    lessons = [Films(tiny.questions).lesson(i, 0) for i in range(4)]
    batch = Batch(fresh, "prefill", lessons)
    answers, optimiser, losses = batch.answers(), torch.optim.Adam(method.network.parameters(), 1e-2), []
    for _ in range(12):
        losses.append(FURTHER["attended"](method, batch, answers, [0, 2, 3])["attended"])
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    alone = [FURTHER["attended"](method, batch, answers, [row])["attended"].item() for row in (0, 2, 3)]
    together = FURTHER["attended"](method, batch, answers, [0, 2, 3])["attended"].item()
    assert together == pytest.approx(sum(alone) / 3, abs=1e-4)

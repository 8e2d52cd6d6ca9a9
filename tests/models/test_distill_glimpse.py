"""What a method's own token is taught: where the answer stands, and to answer."""

import numpy as np
import pytest
import torch

from foveate.models import load_host
from foveate.models.distilling.further import holding, mask_loss
from foveate.models.distilling.lessons import Lesson, TaskLessons
from foveate.models.distilling.recipe import Run
from foveate.models.distilling.settings import Settings


def test_a_perfect_mask_costs_nothing_and_its_opposite_the_most():
    mask = torch.tensor([[1.0, 0, 0, 1]])
    right, wrong = (torch.where(mask > 0, sign * 40.0, sign * -40.0) for sign in (1, -1))
    assert float(mask_loss(right, mask)) == pytest.approx(0, abs=1e-6)
    assert float(mask_loss(wrong, mask)) == pytest.approx(1 - 1 / 5 + 0.1 * 40, abs=1e-4)
    even = float(mask_loss(torch.zeros(1, 4), mask))  # 2 * 1 + 1 of 2 + 2 + 1, and log 2
    assert even == pytest.approx(1 - 3 / 5 + 0.1 * np.log(2), abs=1e-5)


def test_the_fewest_tokens_that_hold_most_attention_and_their_neighbours():
    attention = torch.zeros(1, 25)
    attention[0, 0], attention[0, 1], attention[0, 24] = 0.5, 0.31, 0.19
    held = holding(attention, (1, 5, 5))[0].view(5, 5)
    assert held.nonzero().tolist() == [[y, x] for y in (0, 1) for x in (0, 1, 2)]
    line = torch.tensor([[0.9, 0.1, 0.0, 0.0]])  # of no grid: neighbours in the line
    assert holding(line, (1, 1, 9)).tolist() == [[True, True, False, False]]


class Boxed:
    """The answer stands in the upper left quarter, or nobody says where."""

    label = "boxed"

    def __init__(self, questions, boxed=True):
        self.questions, self.at = questions, ((0, 0, 16, 16),) if boxed else ()

    def lesson(self, number, seed):
        picture = np.random.default_rng([seed, number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return Lesson(picture, self.questions[number % 4], ("red", None)[number % 2], self.at)

    def held_out(self, count):
        return [self.lesson(10**6 + i, 0) for i in range(count)]


@pytest.mark.parametrize("boxed", [True, False])
def test_the_recipe_teaches_where_to_look_and_leaves_the_host_alone(folders, tiny, tmp_path, boxed):
    host = load_host(folders(text_tower=True))
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    run, seen = Run(host, "glimpse_prune", Boxed(tiny.questions, boxed), Settings(0, 4, 4, held_out=4), tmp_path), []
    first = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.train([seen.append])
    assert {"kl", "cross_entropy", "glimpse_answer", "glimpse_mask"} <= set(seen[0].losses)
    assert not [name for name, value in run.network.state_dict().items() if value.equal(first[name])]
    assert all(value.equal(before[name]) for name, value in host.model.state_dict().items())
    _, figures = run.finish(tmp_path)
    assert figures and host.supports("prefill", "glimpse_prune") is None
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.prefill(host.make("prefill", "glimpse_prune"), 0.25)
    assert p.counts["prefill"] == [4]


def test_a_token_learns_where_answers_always_stand(folders, tiny, tmp_path, monkeypatch):
    host = load_host(folders(text_tower=True))
    monkeypatch.setattr("foveate.compressors.prefill.glimpse_prune.GlimpsePrune.rate", 3e-3)
    run, seen = Run(host, "glimpse_prune", Boxed(tiny.questions), Settings(0, 40, 4, held_out=4), tmp_path), []
    run.train([seen.append])
    losses = [step.losses["glimpse_mask"] for step in seen]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_lessons_of_tasks_tell_where_the_answer_stands():
    lessons = TaskLessons(["reading"])
    found = [lessons.lesson(number, 0) for number in range(12)]
    assert any(len(lesson.at) == len(lesson.answer) for lesson in found if lesson.answer)

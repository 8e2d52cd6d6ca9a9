"""Methods for videos in a host: counts, forecasts, answers in any batch; and those that learn, taught on videos."""

import numpy as np
import pytest

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.distilling.lessons import Lesson
from foveate.models.distilling.pairs import drawn
from foveate.models.distilling.recipe import Run
from foveate.models.distilling.settings import Settings
from foveate.models.errors import HostError
from foveate.plans.plan import Plan

LEARNED = {"stc_connector": 2 / 16, "inti": 2 / 4, "pvc": 4 / 16, "storm": 4 / 16, "video_xl_pro": 1 / 16}
CASES = [
    (Plan.of(projector=("slowfast_llava", 24 / 64)), 24),
    (Plan.of(outside=("chat_univi", 14 / 64)), 14),
    (Plan.of(projector=("longvlm", 15 / 64)), 15),
    (Plan.of(projector=("moviechat", 2 / 4)), 32),
    (Plan.of(outside=("testa", 24 / 64)), 24),
    (Plan.of(encoder=("testa", 0.5)), 32),
    *((Plan.of(projector=(name, keep)), round(64 * keep)) for name, keep in LEARNED.items()),
]


def film(tiny, first=0, t=4):
    return np.stack([tiny.picture(first + i) for i in range(t)])


def taught(host):
    """The host with fresh networks for all that learn here."""
    for name in LEARNED:
        method = untrained(make("projector", name), host.widths, host.matrices())
        host.learned["projector", name] = method.network
    return host


@pytest.mark.parametrize(("plan", "count"), CASES, ids=lambda value: value.label() if isinstance(value, Plan) else "")
def test_counts_and_costs_are_known_before_and_a_row_ignores_its_batch_mates(fresh, tiny, plan, count):
    host = taught(fresh)
    together = host.open([film(tiny), film(tiny, 7)], tiny.questions[:2]).run(plan)
    together.decode(max_new_tokens=3)
    assert together.counts["projector"] == [count, count]
    for row in range(2):
        words = len(together.generated[row])
        assert host.forecast(plan, together.shapes[row], new_tokens=words) == together.ledger[row]
    alone = host.open([film(tiny, 7)], tiny.questions[1:2]).run(plan)
    alone.decode(max_new_tokens=3)
    assert alone.generated[0] == together.generated[1]


def test_on_a_picture_each_is_masked_and_says_why(fresh):
    host = taught(fresh)
    for plan, _ in CASES:
        ((stage, choice),) = plan.active
        if choice.method not in ("chat_univi", "video_xl_pro"):
            assert "is for videos" in host.supports(stage, choice.method)
        assert host.supports(stage, choice.method, frames=4) is None


class Films:
    """Random films, and a picture in between."""

    label = "films"

    def __init__(self, questions):
        self.questions = questions

    def lesson(self, number, seed):
        shape = (32, 32, 3) if number % 3 == 2 else (4, 32, 32, 3)
        shown = np.random.default_rng([seed, number]).integers(0, 256, shape, dtype=np.uint8)
        return Lesson(shown, self.questions[number % len(self.questions)], "red")

    def held_out(self, count):
        return [self.lesson(10**6 + 3 * i + 2 - 10**6 % 3, 0) for i in range(count)]


@pytest.mark.parametrize("name", LEARNED)
def test_a_method_for_videos_is_distilled_on_videos(fresh, folders, tiny, name, tmp_path):
    settings = Settings(steps_a=2, steps_b=1, batch=3, held_out=2)
    run = Run(fresh, f"projector:{name}", Films(tiny.questions), settings, tmp_path / "work")
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.train()
    assert any(not before[key].equal(value) for key, value in run.network.state_dict().items())
    run.finish(tmp_path / "out")
    host = load_host(folders(text_tower=True), learned=tmp_path / "out")
    assert host.supports("projector", name, frames=4) is None
    p = host.open([film(tiny)], tiny.questions[:1]).run(Plan.of(projector=(name, LEARNED[name])))
    assert p.counts["prefill"] == [round(64 * LEARNED[name])]


def test_pictures_alone_teach_it_nothing_and_that_is_said(fresh, tiny, tmp_path):
    assert drawn(make("projector", "inti"), [(16, (1, 4, 4))], 0.5) == 1
    assert drawn(make("projector", "inti"), [(64, (4, 4, 4))], 0.0) == 1 / 4

    class Pictures(Films):
        def lesson(self, number, seed):
            return super().lesson(3 * number + 2, seed)

    run = Run(fresh, "inti", Pictures(tiny.questions), Settings(steps_a=1, steps_b=0, batch=2), tmp_path)
    with pytest.raises(HostError, match="inti: there is no count that it could be trained at on these inputs"):
        run.train()

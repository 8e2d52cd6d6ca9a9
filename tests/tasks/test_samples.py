"""What holds for every regime: shapes, determinism, twins, wording, balance."""

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from foveate.tasks.base import DENSE_COLOUR, DENSE_WHAT, SPLITS
from foveate.tasks.questions import ALL_WORDINGS
from foveate.tasks.registry import TASKS, regime_sample, regimes
from foveate.tasks.splits import stream

REGIMES = regimes()
FILMS = {regime: task for task in TASKS.values() if task.shows == "video" for regime in task.regimes}
THREE = ("part_of", "part_recoloured")  # templates with three answers


def fingerprint(sample):
    text = repr((sample.id, sample.family, sample.turns, sample.caption)).encode()
    return hashlib.sha256(sample.image.tobytes() + text).hexdigest()


def asked(regime, index):
    """Template and answer of each question; of a video, without painting it."""
    if regime not in FILMS:
        return [(turn.template, turn.answers[0]) for turn in regime_sample(regime, "host-train", index).turns]
    task, place = FILMS[regime], index * len(FILMS[regime].regimes) + FILMS[regime].regimes.index(regime)
    programme, _ = task.find("host-train", place)
    asks = task.asks(programme, stream(f"{task.name}/host-train/{place}", "ask"))
    return [(ask.template, ask.answers[0]) for ask in asks]


@pytest.mark.fast
@pytest.mark.parametrize("regime", REGIMES)
class TestEveryRegime:
    def test_a_sample_is_complete(self, regime):
        for split in SPLITS:
            sample = regime_sample(regime, split, 5)
            assert sample.image.shape == (96, 96, 3) and sample.image.dtype == np.uint8
            assert sample.image.std() > 1
            assert (sample.regime, sample.split) == (regime, split)
            assert sample.id == f"{sample.task}/{split}/{sample.index}"
            assert 1 <= len(sample.turns) <= 6 and sample.caption
            longest = 100 if TASKS[sample.task].long_answers else 9
            for turn in sample.turns:
                assert turn.template in ALL_WORDINGS
                assert turn.question.endswith("?") and "{" not in turn.question
                assert turn.answers and all(0 < len(answer) <= longest for answer in turn.answers)

    def test_dense_labels_lie_inside_the_class_lists(self, regime):
        sample = regime_sample(regime, "host-train", 3)
        if regime == "easy_vqa":
            assert sample.dense is None
            return
        what, colour = sample.dense[..., 0], sample.dense[..., 1]
        frames = () if sample.clip is None else (len(sample.clip.frames),)
        assert sample.dense.shape == (*frames, 24, 24, 2) and sample.dense.dtype == np.int16
        assert 0 <= what.min() and 0 < what.max() < len(DENSE_WHAT)
        assert 0 <= colour.min() and colour.max() < len(DENSE_COLOUR)
        assert (colour[what == 0] == 0).all()

    def test_two_calls_agree_and_neighbours_differ(self, regime):
        first, again = (regime_sample(regime, "validation", 11) for _ in range(2))
        assert fingerprint(first) == fingerprint(again)
        assert np.array_equal(first.image, again.image)
        assert fingerprint(first) != fingerprint(regime_sample(regime, "validation", 12))

    def test_twins_keep_programme_and_meaning_in_new_pixels_and_words(self, regime):
        sample = regime_sample(regime, "calibration", 2)
        twins = TASKS[sample.task].twins(sample, 3)
        assert [twin.id for twin in twins] == [f"{sample.id}~{r}" for r in (1, 2, 3)]
        for twin in twins:
            assert (twin.family, twin.split, twin.regime) == (sample.family, sample.split, sample.regime)
            assert [(turn.template, turn.answers) for turn in twin.turns] == [
                (turn.template, turn.answers) for turn in sample.turns
            ]
            assert not np.array_equal(twin.image, sample.image)
        for old, new in zip(sample.turns, twins[0].turns, strict=True):
            assert old.question != new.question
        assert fingerprint(twins[1]) == fingerprint(TASKS[sample.task].twins(sample, 2)[1])

    def test_bad_arguments_are_named(self, regime):
        sample = regime_sample(regime, "test", 0)
        task = TASKS[sample.task]
        with pytest.raises(ValueError, match="split 'dev' is unknown"):
            task.sample("dev", 0)
        with pytest.raises(ValueError, match="index -3 is negative"):
            task.sample("test", -3)
        with pytest.raises(ValueError, match="r is -1"):
            task.twins(sample, -1)
        other = next(t for t in TASKS.values() if t.name != task.name)
        with pytest.raises(ValueError, match=f"belongs to task '{task.name}'"):
            other.twins(sample, 1)


@pytest.mark.parametrize("regime", REGIMES)
def test_no_template_has_an_answer_that_pays_off_blind(regime):
    """The best constant per template: at most 30 %, one half for yes/no, 40 % where there are three answers."""
    answers, turns = defaultdict(Counter), 0
    for index in range(400):
        for template, answer in asked(regime, index):
            answers[template][answer] += 1
            turns += 1
    for template, found in answers.items():
        total = sum(found.values())
        best = max(found.values()) / total
        three = regime == "easy_vqa" or template in THREE
        limit = 0.5 if set(found) <= {"yes", "no"} else 0.4 if three else 0.3
        assert best <= limit + 2 * (limit * (1 - limit) / total) ** 0.5, (template, found.most_common(3))
    yes_no = sum(sum(found.values()) for found in answers.values() if set(found) <= {"yes", "no"})
    assert yes_no / turns < (1 / 3 if regime == "relations" else 1 / 5)


@pytest.mark.fast
def test_regimes_share_templates_and_have_several():
    templates = {regime: {template for k in range(60) for template, _ in asked(regime, k)} for regime in REGIMES}
    assert templates["reading"] & templates["digits"] == {"number_written"}
    assert templates["tables"] & templates["charts"] == {"value_of"}
    assert templates["counting"] & templates["pictures"] >= {"count_of", "count_objects"}
    assert templates["single"] & templates["search"] == {"colour_of", "shape_of"}
    assert templates["slides"] & templates["reading"] == {"number_on_plate", "word_on_plate"}
    assert templates["panning"] & templates["order"] == {"shape_nth", "colour_nth"}
    assert templates["panning"] & templates["relations"] == {"shape_beside", "colour_beside"}
    assert templates["motion"] & templates["mover"] == {"way_of"}
    assert templates["change"] & templates["idle"] >= {"shape_recoloured"}
    once = {regime for regime, found in templates.items() if len(found) == 1}
    assert once <= {"forms", "transcript"}


def test_another_process_with_another_hash_seed_draws_the_same_samples():
    code = (
        "import hashlib, sys\nfrom foveate.tasks.registry import regime_sample, regimes\n"
        "for regime in regimes():\n    s = regime_sample(regime, 'test', 4)\n"
        "    text = repr((s.id, s.family, s.turns, s.caption)).encode()\n"
        "    print(hashlib.sha256(s.image.tobytes() + text).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert found.split() == [fingerprint(regime_sample(regime, "test", 4)) for regime in REGIMES]


def test_the_package_draws_without_torch_or_matplotlib():
    code = (
        "import sys\nfrom foveate.tasks.registry import regime_sample, regimes\nimport foveate.tasks.jsonl\n"
        "[regime_sample(regime, 'test', 0) for regime in regimes()]\n"
        "print([m for m in ('torch', 'gymnasium', 'matplotlib', 'sklearn', 'skimage', 'easy_vqa') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"

"""Lookup, addresses and even streams."""

from collections import Counter
from importlib import resources

import numpy as np
import pytest

from foveate.tasks.questions import ALL_WORDINGS
from foveate.tasks.registry import TASKS, get_task, iter_samples, regime_sample, regimes

pytestmark = pytest.mark.fast


def test_the_registry_lists_every_task_under_its_name():
    pictures = ["scenes", "reading", "documents", "charts", "digits", "pictures", "easy_vqa"]
    assert list(TASKS) == [*pictures, "video", "long-video", "transcripts"]
    assert [task.shows for task in TASKS.values()] == ["picture"] * 7 + ["video"] * 2 + ["picture"]
    assert all(task.name == name for name, task in TASKS.items())
    assert regimes(["scenes", "documents"]) == (
        "single",
        "search",
        "counting",
        "relations",
        "tables",
        "receipts",
        "forms",
    )


def test_a_regime_can_be_named_in_place_of_its_task():
    assert regimes(["motion", "idle64", "reading"]) == ("motion", "idle64", "reading")
    assert regimes(["single", "scenes"]) == ("single", "search", "counting", "relations")
    assert get_task("tables") is TASKS["documents"]
    shown = [sample.regime for sample in iter_samples(["tables", "motion"], "test", 4)]
    assert sorted(shown) == ["motion", "motion", "tables", "tables"]
    assert next(iter_samples(["tables"], "test", 1)).id == regime_sample("tables", "test", 0).id


def test_unknown_names_list_near_ones():
    with pytest.raises(ValueError, match="task 'scene' is unknown, did you mean scenes"):
        get_task("scene")
    with pytest.raises(ValueError, match="regime 'counts' is unknown, did you mean counting"):
        regime_sample("counts", "test", 0)
    with pytest.raises(ValueError, match="task 'zzz' is unknown, did you mean charts or "):
        get_task("zzz")


def test_regime_sample_is_the_task_sample_at_the_interleaved_index():
    sample = regime_sample("counting", "test", 6)
    assert sample.id == "scenes/test/26"  # 6 * 4 regimes + place 2
    assert np.array_equal(sample.image, TASKS["scenes"].sample("test", 26).image)


def test_every_regime_gets_an_equal_share():
    samples = list(iter_samples(["scenes", "reading", "documents"], "validation", 20, seed=1))
    counts = Counter(sample.regime for sample in samples)
    assert len(counts) == 8 and set(counts.values()) == {2, 3}
    assert len({sample.id for sample in samples}) == 20


def test_the_seed_changes_the_order_only():
    first = [sample.id for sample in iter_samples(["scenes"], "test", 8, seed=0)]
    assert first == [sample.id for sample in iter_samples(["scenes"], "test", 8, seed=0)]
    others = [[sample.id for sample in iter_samples(["scenes"], "test", 8, seed=seed)] for seed in (1, 2, 3)]
    assert any(other != first for other in others)
    assert all(sorted(other) == sorted(first) for other in others)


def test_bad_streams_are_refused():
    with pytest.raises(ValueError, match="tasks is empty"):
        list(iter_samples([], "test", 3))
    with pytest.raises(ValueError, match="n is -1"):
        list(iter_samples(["scenes"], "test", -1))
    with pytest.raises(ValueError, match="split 'tset' is unknown"):
        list(iter_samples(["scenes"], "tset", 1))
    assert list(iter_samples(["scenes"], "test", 0)) == []


def test_a_task_that_is_not_usable_is_refused_with_its_reason(monkeypatch):
    monkeypatch.setattr(type(TASKS["easy_vqa"]), "available", lambda self: "package easy-vqa is not installed")
    with pytest.raises(ValueError, match="task 'easy_vqa' is not usable: package easy-vqa is not installed"):
        list(iter_samples(["easy_vqa"], "test", 1))
    assert "easy_vqa" not in regimes()


def test_the_card_names_every_regime_and_template():
    card = (resources.files("foveate.tasks") / "card.md").read_text()
    for task in TASKS.values():
        for regime in task.regimes:
            assert f"| {task.name} | {regime} |" in card
    for template in ALL_WORDINGS:
        assert f"`{template}`" in card

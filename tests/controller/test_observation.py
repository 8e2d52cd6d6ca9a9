"""The layout of the observation: every entry has one place, one name and the documented range."""

import numpy as np
import pytest

from foveate.controller.features import PIXEL_FEATURES, QUESTION_FEATURES
from foveate.controller.motion import TIME_FEATURES
from foveate.controller.observation import GROUPS, HEAD, Layout, Progress, Unseen, read_lambda
from foveate.plans.plan import STAGES

pytestmark = pytest.mark.fast


def named(layout, vector):
    return dict(zip(layout.names, vector.tolist(), strict=True))


def test_names_and_slices_cover_the_vector_once_in_order(layout):
    places = [i for part in ("head", *GROUPS) for i in range(*layout.slices[part].indices(layout.size))]
    assert places == list(range(layout.size)) and len(set(layout.names)) == layout.size == 12 + 25 + 42 + 3 + 2 + 3
    assert layout.names[layout.slices["block1"]] == ("block1.seen", "block1.similarity", "block1.participation")
    assert layout.names[layout.slices["pixels"]][1:] == tuple(f"pixels.{name}" for name in PIXEL_FEATURES)
    assert layout.names[layout.slices["question"]][1:] == tuple(f"question.{name}" for name in QUESTION_FEATURES)


def test_every_part_of_an_observation_lands_at_its_name(layout):
    progress = Progress(spent=0.25, tokens_left=0.5, budget=0.75, turns=4)
    groups = {"pixels": np.full(24, 0.1), "block1": np.array([0.5, -3.0])}
    vector = layout.assemble("outside", 0.01, progress, groups)
    values = named(layout, vector)
    assert vector.dtype == np.float32
    assert [values[f"stage_{stage}"] for stage in STAGES] == [0, 0, 1, 0, 0, 0]
    head = {"log_lambda": -1.0, "has_budget": 1, "budget_left": 0.5, "spent": 0.25, "tokens_left": 0.5, "turns": 0.5}
    assert {name: values[name] for name in head} == head
    assert values["pixels.seen"] == 1 and values["pixels.contrast"] == pytest.approx(0.1)
    assert (values["block1.seen"], values["block1.similarity"], values["block1.participation"]) == (1, 0.5, -3.0)
    assert not vector[layout.slices["question"]].any() and not vector[layout.slices["layer1"]].any()


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(), {"has_budget": 0, "budget_left": 2, "spent": 0, "tokens_left": 1, "turns": 0}),
        (Progress(spent=1.5, budget=0.2), {"budget_left": 0, "spent": 1.5}),
        (
            Progress(spent=9, tokens_left=7, budget=50, turns=10**6),
            {"budget_left": 2, "spent": 2, "tokens_left": 1, "turns": 1},
        ),
    ],
)
def test_the_head_is_limited_to_its_documented_range(layout, progress, expected):
    values = named(layout, layout.assemble("input", 1.0, progress, {}))
    assert {name: values[name] for name in expected} == expected


def test_bounds_hold_for_extreme_inputs(layout):
    low, high = layout.bounds()
    for lam in (0.0, 1e9):
        vector = layout.assemble(
            "decode", lam, Progress(9, 9, 0.0, 99), {"pixels": np.ones(24), "question": np.zeros(41)}
        )
        assert (low <= vector).all() and (vector <= high).all()


@pytest.mark.parametrize("lam", [1e-4, 0.01, 0.3, 1.0, 100.0])
def test_lambda_is_read_back_from_the_vector(layout, lam):
    assert read_lambda(layout.assemble("input", lam, Progress(), {})) == pytest.approx(lam, rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "lam", "groups", "message"),
    [
        ("outsid", 1.0, {}, "stage: unknown 'outsid'"),
        ("input", -1.0, {}, "lam: -1.0"),
        ("input", float("nan"), {}, "lam: nan"),
        ("input", 1.0, {"pixel": np.zeros(24)}, "groups: unknown 'pixel'"),
        ("input", 1.0, {"pixels": np.zeros(23)}, r"'pixels' has shape \(23,\), expected \(24,\)"),
        ("input", 1.0, {"layer1": np.zeros((1, 2))}, r"'layer1' has shape \(1, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(layout, stage, lam, groups, message):
    with pytest.raises(ValueError, match=message):
        layout.assemble(stage, lam, Progress(), groups)


def test_nan_and_infinity_are_passed_on_for_the_reader_to_refuse(layout):
    progress = Progress(spent=float("nan"))
    values = named(layout, layout.assemble("input", 1.0, progress, {"encoder": np.array([np.inf])}))
    assert np.isnan(values["spent"]) and values["encoder.concentration"] == np.inf


def test_only_features_of_revealed_groups_count_as_revealed(layout, groups):
    revealed = layout.revealed(layout.assemble("outside", 1.0, Progress(), groups))
    assert revealed.sum() == 24 + 41 + 2 + 1
    assert not revealed[: len(HEAD)].any() and not revealed[layout.slices["layer1"]].any()
    assert not any(revealed[layout.slices[group].start] for group in GROUPS)


def test_a_layout_survives_plain_data(layout):
    assert Layout.from_dict(layout.to_dict()) == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=3), "observation version is 3, this code has 1 and 2"),
        (lambda d: d.update(version=2), "feature 24 of group 'pixels' is 'nothing', this code has 'motion_mean'"),
        (lambda d: d.update(features_version=0), "observation features_version is 0"),
        (lambda d: d["head"].reverse(), "feature 0 of group 'head' is 'turns', this code has 'stage_input'"),
        (
            lambda d: d["groups"]["pixels"].insert(1, d["groups"]["pixels"].pop(0)),
            "feature 0 of group 'pixels' is 'contrast'",
        ),
        (lambda d: d["groups"]["question"].pop(), "feature 40 of group 'question' is 'nothing'"),
        (lambda d: d["groups"]["layer1"].append("mass"), "names a feature twice"),
    ],
)
def test_plain_data_of_another_order_or_version_is_refused(layout, change, message):
    data = layout.to_dict()
    change(data)
    with pytest.raises(ValueError, match=message):
        Layout.from_dict(data)


def test_a_layout_for_videos_has_their_features_behind_the_pixels_and_zeros_for_pictures():
    films = Layout.of({"layer1": ["mass"]}, video=True)
    assert films.video and films.names[films.slices["pixels"]][25:] == tuple(f"pixels.{name}" for name in TIME_FEATURES)
    still = films.assemble("input", 1.0, Progress(), {"pixels": np.ones(24)})[films.slices["pixels"]]
    moving = films.assemble("input", 1.0, Progress(), {"pixels": np.ones(29)})[films.slices["pixels"]]
    assert still.tolist() == [1.0] * 25 + [0.0] * 5 and moving.tolist() == [1.0] * 30
    assert Layout.from_dict(films.to_dict()) == films and films.to_dict()["version"] == 2
    recorded = dict(zip(GROUPS, films.features, strict=True))
    assert Layout.of_recorded(recorded) == films
    with pytest.raises(ValueError, match="feature 28 of group 'pixels' is 'nothing', this code has 'log_frames'"):
        Layout.of_recorded({**recorded, "pixels": films.features[0][:-1]})


def test_a_layout_for_pictures_refuses_a_video_by_name(layout):
    assert not layout.video and layout.to_dict()["version"] == 1
    with pytest.raises(Unseen, match="a video's 'pixels', and this layout is for pictures"):
        layout.assemble("input", 1.0, Progress(), {"pixels": np.ones(29)})


def test_an_unknown_token_group_is_refused():
    with pytest.raises(ValueError, match="unknown group 'layer2'"):
        Layout.of({"layer2": ["x"]})

"""Named plans: the shipped files and the errors of a user's own."""

import pytest

from foveate.plans.named import load_plan, named_plans
from foveate.plans.plan import BLIND, Plan

pytestmark = pytest.mark.fast


def test_the_blind_plan_is_shipped():
    assert load_plan("blind") == BLIND
    assert named_plans()["blind"] == BLIND


def test_the_advised_hybrid_is_shipped_with_and_without_a_learned_projector():
    assert load_plan("pool_and_look_once") == Plan.of(projector=("average_pool", 0.25), decode=("look_m", 0.5))
    assert load_plan("learn_to_pool_and_look_once") == Plan.of(projector=("ldpv2", 0.25), decode=("look_m", 0.5))


def test_the_two_stages_of_dycoke_are_shipped():
    assert load_plan("dycoke") == Plan.of(projector=("dycoke", 0.475), decode=("dycoke", 0.3))


def test_the_synthesizer_and_the_selector_of_video_xl_pro_are_shipped():
    wanted = Plan.of(projector=("video_xl_pro", 0.0625), prefill=("video_xl_pro", 0.7))
    assert load_plan("video_xl_pro") == wanted


def test_a_plan_over_two_stages_loads_from_a_path(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(
        "version: 1\nplan:\n  outside: {method: visionzip, keep: 0.25}\n  prefill: {method: fastv, keep: 0.5}\n"
    )
    assert load_plan(path) == Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(FileNotFoundError, match="no file 'blnd', nor one of that name in configs/plans; near: blind"):
        load_plan("blnd")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nplan:\n  outsid: {method: tome, keep: 0.5}\n", "3: plan.outsid: unknown stage; near: outside"),
        ("version: 1\nplan:\n  outside: {method: tome, keep: 7}\n", "3: plan.outside: tome: keep = 7.0 is outside"),
        ("version: 1\nplan:\n  outside: {method: tome}\n", "3: plan.outside: a choice is"),
        ("version: 1\nplan: tome\n", "2: plan: must map stages"),
        ("version: 3\nplan: {}\n", "1: version: version 3 is unknown"),
        ("plan: {}\n", "1: a plan file holds version and plan; got"),
        (
            "version: 1\nplan:\n  input: {method: blind, keep: 0}\n  outside: {method: tome, keep: 0.5}\n",
            "2: plan: outside: tome has no visual token",
        ),
    ],
)
def test_a_mistake_names_file_line_and_field(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"own.yaml:{message}"):
        load_plan(path)

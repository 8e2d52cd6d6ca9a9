"""Plans as users write them."""

from __future__ import annotations

import pytest

from foveate.cli.reading import open_model, read_plan
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast
TWO = Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))


def test_a_plan_is_read_from_its_label_its_json_its_name_and_its_file(tmp_path):
    assert read_plan(TWO.label()) == TWO
    assert (
        read_plan('{"outside": {"method": "visionzip", "keep": 0.25}, "prefill": {"method": "fastv", "keep": 0.5}}')
        == TWO
    )
    assert read_plan("blind") == BLIND and read_plan("none") == UNCOMPRESSED
    (tmp_path / "mine.yaml").write_text("version: 1\nplan:\n  prefill: {method: fastv, keep: 0.5}\n")
    assert read_plan(str(tmp_path / "mine.yaml")) == Plan.of(prefill=("fastv", 0.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("outside:visonzip@0.25", ["outside", "unknown method 'visonzip'", "visionzip"]),
        ("outsde:visionzip@0.25", ["unknown stage 'outsde'", "outside"]),
        ("outside:visionzip@1.5", ["visionzip", "1.5 is outside (0, 1]"]),
        ("outside:visionzip@0", ["0.0 is outside (0, 1]"]),
        ("outside:visionzip@half", ["'half' is not a number"]),
        ("outside:visionzip@nan", ["nan"]),
        ("visionzip@0.5", ["stage:method@keep"]),
        ("outside:visionzip@0.5 + outside:random@0.5", ["given twice"]),
        ("visionzip", ["'visionzip' is a method", "'outside:visionzip@0.25'"]),
        ("fastv", ["'prefill:fastv@0.25'"]),
        ('{"outside": {"method": "visionzip"}}', ["outside", "keep: ratio"]),
        ('{"outside": ', ["plan"]),
        ('{"prefill": {"method": "visionzip", "keep": 0.5}}', ["prefill", "unknown method"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_what_and_where(text, words):
    with pytest.raises(ValueError) as caught:
        read_plan(text)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(FileNotFoundError, match="near: blind"):
        read_plan("blnd")


def test_a_model_that_no_place_can_have_is_refused_before_anyone_is_asked():
    with pytest.raises(
        ValueError,
        match=r"^model 'refrence': not 'reference' or 'reference-video', no folder .* no hub id \(owner/name\)$",
    ):
        open_model("refrence")


@pytest.mark.parametrize("device", ["nodevice", "cpu:x", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_before_the_model_is_read(device):
    with pytest.raises(ValueError, match=f"^device '{device}': .") as caught:
        open_model("reference", device=device)
    assert "\n" not in str(caught.value)

"""Streams of each family: LLaVA-OneVision runs them as it runs a video, the others say in one line why they do not."""

import numpy as np
import pytest
import tiny_anyres
import tiny_qwen
import tiny_shuffle
import torch
from tiny_anyres import NEXT, ONEVISION

from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.errors import HostError
from foveate.models.inputs import NEWLINE
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast
SIZE = tiny_anyres.TILE[ONEVISION]
BUILD = {
    NEXT: lambda folder: tiny_anyres.build(folder, NEXT),
    **{family: lambda folder, f=family: tiny_shuffle.build(folder, f) for family in tiny_shuffle.FAMILIES},
    **{kind: lambda folder, k=kind: tiny_qwen.build(folder, k) for kind in ("qwen2_5_vl", "qwen3_vl")},
}
TIMES = "rotates by time, row and column: tokens of a memory stand at no time of their own"
WORDS = "its prompts write words beside each frame"
REASONS = {
    NEXT: "this model takes pictures only",
    tiny_shuffle.INTERNVL: WORDS,
    tiny_shuffle.SMOLVLM: WORDS,
    tiny_shuffle.IDEFICS3: "pictures only",
    "qwen2_5_vl": TIMES,
    "qwen3_vl": TIMES,
}


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    torch.set_num_threads(1)
    return load_host(tiny_anyres.build(tmp_path_factory.mktemp("model"), ONEVISION, "qwen2"))


def frames(t, height=SIZE, width=SIZE):
    return [tiny_anyres.picture(i, height, width) for i in range(t)]


@pytest.mark.parametrize("window", [1, 4, 16])
def test_onevision_answers_as_the_pass_over_the_whole_video_its_newline_behind_the_memory(onevision, window):
    p = onevision.stream(iter(frames(10)), "what is this ?", "moviechat", 3 / 10, frames=10, window=window)
    q = onevision.open([np.stack(frames(10))], ["what is this ?"]).run(Plan.of(projector=("moviechat", 3 / 10)))
    assert p.decode(max_new_tokens=5) == q.decode(max_new_tokens=5)
    assert torch.allclose(p.logits, q.logits, atol=1e-5) and p.counts["prefill"] == q.counts["prefill"] == [27]
    assert p.ledger[0].entries == q.ledger[0].entries and p.whole == q.shapes[0]
    row = p.rows[0]
    (newline,) = np.flatnonzero(row.position == NEWLINE)
    assert row.view[newline - 1] == 0 and row.position[newline - 1] == 26


def test_onevision_drops_in_a_stream_what_dtd_drops_of_its_pooled_frames(onevision):
    method = make("projector", "dtd", tau=0.5)
    p = onevision.stream(iter(frames(8)), "what is this ?", method, memory=4, window=3)
    q = onevision.open([np.stack(frames(8))], ["what is this ?"])
    q.project(method, 4 / 8)
    assert p.tokens[0].position.equal(q.tokens[0].position)
    assert torch.allclose(p.tokens[0].x, q.tokens[0].x, atol=1e-5)


@pytest.mark.parametrize("family", REASONS)
def test_a_family_without_room_for_a_stream_says_so_in_one_line(family, tmp_path):
    host = load_host(BUILD[family](tmp_path))
    with pytest.raises(HostError) as told:
        host.stream(iter(frames(3, 40, 48)), "what is this ?", "moviechat", memory=2)
    assert REASONS[family] in str(told.value) and "\n" not in str(told.value)

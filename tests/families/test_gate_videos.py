"""Videos at the gate, on every family that takes them: shown as clips, or read back from what a processor makes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tiny_anyres
import tiny_qwen
import tiny_shuffle
import torch
from filming import write_film
from test_gate import LLAVA, ONEVISION, QWEN2, QWEN3, serving, tiny_models
from tiny_shuffle import INTERNVL, SMOLVLM
from tiny_words import QUESTIONS

from foveate.models import load_host
from foveate.models.errors import BadInput
from foveate.plans.plan import UNCOMPRESSED, Choice, Plan
from foveate.plans.portfolio import Portfolio
from foveate.serving.gate import Gate
from foveate.serving.requests import Unsupported, from_tensors, tensors
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast

PACKED = (ONEVISION, QWEN2, QWEN3)
"""Families whose processors have names of their own for videos; the others show frames as pictures, or show none."""

OFFERS = Portfolio(
    "films",
    {
        "input": (Choice("frames", 0.67), Choice("downsample", 0.25)),
        "outside": (Choice("visionzip", 0.5),),
        "projector": (Choice("meteor", 0.5),),
    },
)
FEWER = Plan.of(input=("frames", 0.67))
TIMES = ("seconds>", *(f"<{second:.1f}" for second in np.arange(0, 20) / 10))
"""As the words of a tiny tokenizer, which splits at white space."""


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    torch.set_num_threads(1)
    builders = {LLAVA: tiny_models, ONEVISION: tiny_anyres, QWEN2: tiny_qwen, QWEN3: tiny_qwen}

    @cache
    def get(family: str):
        builder, folder = builders.get(family, tiny_shuffle), tmp_path_factory.mktemp(family)
        with pytest.MonkeyPatch.context() as patch:  # the times that Qwen3's prompts tell are to be read back
            patch.setattr(tiny_qwen, "WORDS", [*tiny_qwen.WORDS, *TIMES] if family == QWEN3 else tiny_qwen.WORDS)
            return load_host(builder.build(folder) if family == LLAVA else builder.build(folder, family))

    return get


def clip(first: int, t: int, height: int = 24, width: int = 32, fps: float = 4.0) -> Clip:
    return Clip.of(np.stack([tiny_shuffle.picture(first + i, height, width) for i in range(t)]), fps)


def gate_of(host, plan, video=True, **dials) -> Gate:
    return Gate(host, None, serving.artefact(host, plan, video=video, portfolio=OFFERS), **dials)


@pytest.mark.parametrize("family", [LLAVA, *PACKED, INTERNVL, SMOLVLM])
def test_fewer_frames_are_decided_on_videos_and_masked_on_pictures(opened, family):
    host = opened(family)
    shown, picture = clip(0, 6), tiny_shuffle.picture(20, 24, 32)
    gate = gate_of(host, FEWER)
    said = gate.answer([shown, picture], QUESTIONS[:2], 3)
    film, still = gate.last
    assert (film.plan, film.reason) == (FEWER, "policy") and still.plan == UNCOMPRESSED and film.share < 1
    p = host.open([shown], QUESTIONS[:1]).run(FEWER)
    assert p.decode(max_new_tokens=3) == said[:1] == gate.answer(video=shown, question=QUESTIONS[0], max_new_tokens=3)
    ((grid, kept),) = film.kept
    assert grid[0] == p.tokens[0].grid[0] < host.open([shown], QUESTIONS[:1]).rows[0].views[0].grid[0]
    assert len(kept) == grid[0] * grid[1] * grid[2]


def test_a_controller_for_pictures_leaves_videos_alone_and_says_so(opened):
    gate = gate_of(opened(LLAVA), Plan.of(outside=("visionzip", 0.5)), video=False)
    gate.answer([tiny_shuffle.picture(0, 24, 24)], QUESTIONS[:1], 2)
    assert gate.last[0].reason == "policy" and gate.last[0].share < 1
    gate.answer(video=clip(0, 3), question=QUESTIONS[0], max_new_tokens=2)
    assert gate.last[0].reason == "outside" and gate.last[0].plan == UNCOMPRESSED


def test_a_video_may_be_a_clip_an_array_or_a_file(opened, tmp_path):
    gate, frames = gate_of(opened(LLAVA), UNCOMPRESSED), clip(0, 3).frames
    path = write_film(tmp_path / "clip.mkv", frames)
    said = [gate.answer(video=v, question="left ?") for v in (clip(0, 3), frames, path)]
    assert said[0] == said[1] == said[2] and gate.counters == {"policy": 3, "rows": 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"video": "nothing.mp4", "question": "what ?"}, "video 'nothing.mp4': no such file"),
        ({"video": np.zeros((2, 8, 8, 3)), "question": "what ?"}, r"video: needs a uint8 array \(T, H, W, 3\)"),
        ({"video": 3, "question": "what ?"}, r"video: needs a clip, an array \(T, H, W, 3\) or a file, got int"),
        ({"video": clip(0, 2)}, "answer: give images and questions, or one video and its question"),
        ({"images": [clip(0, 2)], "questions": ["what ?"], "question": "what ?"}, "answer: give images and questions"),
        ({"video": clip(0, 2), "question": " <image>"}, "question 0: contains the image token"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(opened, arguments, words):
    with pytest.raises(BadInput, match=words) as refusal:
        gate_of(opened(LLAVA), UNCOMPRESSED).answer(**arguments)
    assert "\n" not in str(refusal.value)


def packed(host, rows, questions):
    return tensors(host, host.inputs.rows(rows, questions))


@pytest.mark.parametrize("family", PACKED)
def test_rows_with_videos_come_back_as_they_went_in(opened, family):
    host = opened(family)
    rows = [[clip(0, 4)], [tiny_shuffle.picture(9, 24, 32), clip(10, 4)], [tiny_shuffle.picture(20, 32, 24)]]
    made = packed(host, rows, QUESTIONS[:3])
    for got, own in zip(from_tensors(host, made).rows, host.inputs.rows(rows, QUESTIONS[:3]), strict=True):
        assert got.ids.tolist() == own.ids.tolist() and got.question == own.question.strip()
        assert np.array_equal(got.view, own.view) and np.array_equal(got.position, own.position)
        assert np.array_equal(got.place, own.place) and got.shape.grids == own.shape.grids
        assert [picture.kind for picture in got.pictures] == [picture.kind for picture in own.pictures]
        for mine, theirs in zip(got.views, own.views, strict=True):
            assert np.array_equal(mine.pixels, theirs.pixels)


@pytest.mark.parametrize("family", PACKED)
def test_generate_answers_a_processors_videos_like_the_model_and_decides_on_them(opened, family):
    host = opened(family)
    made = packed(host, [[clip(3, 6)]], QUESTIONS[:1])
    gate = gate_of(host, UNCOMPRESSED)
    got = gate.generate(**made, max_new_tokens=5)
    assert [record.why for record in gate.last] == [""] and gate.counters["policy"] == 1
    assert torch.equal(got, gate._plain(**made, max_new_tokens=5, do_sample=False))
    fewer = gate_of(host, FEWER)
    fewer.generate(**made, max_new_tokens=5)
    assert fewer.last[0].plan == FEWER and fewer.last[0].share < 1


SPOILT = {
    "no frames": (PACKED, lambda made: {"pixel_values_videos": torch.randn_like(made["pixel_values_videos"])}, "8-bit"),
    "one video more": (
        (ONEVISION,),
        lambda made: {"pixel_values_videos": made["pixel_values_videos"].repeat(2, 1, 1, 1, 1)},
        "2 pictures, the prompts show 1",
    ),
    "no grid": ((QWEN2, QWEN3), lambda made: {"video_grid_thw": None}, "video_grid_thw: missing"),
    "no kinds": ((QWEN2, QWEN3), lambda made: {"mm_token_type_ids": made["mm_token_type_ids"] // 2}, "mm_token_type"),
    "no times": ((QWEN2,), lambda made: {"second_per_grid_ts": torch.zeros(1)}, "second_per_grid_ts"),
}


@pytest.mark.parametrize(("family", "case"), [(f, case) for case, (families, *_) in SPOILT.items() for f in families])
def test_what_cannot_be_mapped_is_refused_in_one_line(opened, family, case):
    _, spoil, words = SPOILT[case]
    made = packed(opened(family), [[clip(0, 2)]], QUESTIONS[:1])
    with pytest.raises(Unsupported, match=words) as refusal:
        from_tensors(opened(family), made | spoil(made))
    assert "\n" not in str(refusal.value)

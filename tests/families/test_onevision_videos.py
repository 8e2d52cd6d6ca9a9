"""LLaVA-OneVision on videos: pooled frames as the untouched model has them, and what methods make of them."""

import numpy as np
import pytest
import tiny_anyres as tiny
import torch
from tiny_anyres import END, NEXT, ONEVISION, SIDE, TILE, VIDEO
from tiny_words import QUESTIONS
from transformers import AutoModelForImageTextToText

from foveate.models import load_host
from foveate.models.errors import BadInput
from foveate.models.inputs import NEWLINE
from foveate.plans.plan import UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast
SIZE, GRID = TILE[ONEVISION], SIDE[ONEVISION]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.build(tmp_path_factory.mktemp("model"), ONEVISION, "qwen2")


@pytest.fixture(scope="module")
def host(folder):
    return load_host(folder)


def frames(first, t, height=SIZE, width=SIZE):
    return np.stack([tiny.picture(first + i, height, width) for i in range(t)])


def pixels(processor, clip):
    how = processor.image_processor
    mean, std = (torch.tensor(v)[:, None, None] for v in (how.image_mean, how.image_std))
    return (torch.from_numpy(clip).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.mark.parametrize("still", [False, True])
def test_a_video_generates_what_the_model_generates(host, folder, still):
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), tiny.processor(ONEVISION)
    answers = set()
    for seed, t in ((0, 3), (5, 1), (8, 4)):
        clip, question = frames(seed, t), QUESTIONS[seed % 4]
        picture = [tiny.picture(40, 30, 60)] if still else []
        p = host.open([[*picture, clip]], [question])
        content = [{"type": "image"}] * still + [{"type": "video"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        text = text.replace("<video>", "<video>" * (t * (-(-GRID // 2)) ** 2 + 1))
        inputs = dict(processor.image_processor([picture], return_tensors="pt")) if still else {}
        text = text.replace("<image>", processor.replace_image_token(inputs, 0)) if still else text
        inputs |= {"pixel_values_videos": pixels(processor, clip)[None]}
        inputs |= dict(processor.tokenizer([text], return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        assert p.rows[0].ids.tolist() == inputs["input_ids"][0].tolist()
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=7)[0, len(p.rows[0].ids) :].tolist()
            logits = model(**inputs).logits[0, -1]
        p.decode(max_new_tokens=7)
        assert p.generated == [out[: out.index(END) + 1] if END in out else out]
        assert torch.allclose(p.logits[0], logits, atol=1e-4)
        answers.add(tuple(out))
        ours = host.inputs.tensors(host.inputs).of(p.rows, inputs["input_ids"])
        for name in ("pixel_values_videos", *(("pixel_values", "image_sizes") if still else ())):
            assert torch.allclose(ours[name].double(), inputs[name].double(), atol=1e-5), name
    assert len(answers) > 1


def test_a_frame_shows_the_middles_of_its_pooled_map_and_one_newline_ends_the_video(host):
    row = host.inputs.row(frames(0, 2), QUESTIONS[0], 0)
    shown = (row.ids == VIDEO) & (row.position >= 0)
    assert row.position[shown].tolist() == [25 * t + 5 * r + c for t in (0, 1) for r in (0, 2, 4) for c in (0, 2, 4)]
    assert (row.position == NEWLINE).sum() == 1 and row.position[np.flatnonzero(shown)[-1] + 1] == NEWLINE
    assert (row.shape.grids, row.shape.shown, row.shape.mixed) == (((2, 5, 5),), ((2, 3, 3),), (True,))


@pytest.mark.parametrize(
    "plan",
    [
        UNCOMPRESSED,
        Plan.of(input=("downsample", 0.5)),
        Plan.of(input=("frames", 0.67), prefill=("fastv", 0.5)),
        Plan.of(encoder=("tome", 0.5)),
        Plan.of(outside=("visionzip", 0.5)),
        Plan.of(projector=("meteor", 0.5), prefill=("fastv", 0.5)),
    ],
    ids=lambda plan: plan.label(),
)
def test_a_forecast_is_the_ledger(host, plan):
    p = host.open([frames(0, 3)], QUESTIONS[:1])
    p.run(plan)
    p.decode(max_new_tokens=2)
    wanted = host.forecast(plan, p.shapes[0], new_tokens=len(p.generated[0]))
    if plan["encoder"].is_none:
        assert wanted == p.ledger[0]
    else:  # tokens between those that are shown take the kept ones' places: fewer may reach the prompt
        assert wanted.total >= p.ledger[0].total
    assert p.counts["encoder"][0] <= 27 and p.tokens[0].grid[0] == (3 if plan["input"].method != "frames" else 2)


def test_next_takes_pictures_only(tmp_path):
    host = load_host(tiny.build(tmp_path, NEXT))
    with pytest.raises(BadInput, match="a video: this model takes pictures only"):
        host.open([frames(0, 2)], QUESTIONS[:1])

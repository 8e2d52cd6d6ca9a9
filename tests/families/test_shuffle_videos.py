"""InternVL and SmolVLM on videos: frames and words as their processors put them, answers as the untouched models."""

import numpy as np
import pytest
import tiny_shuffle as tiny
import torch
from tiny_shuffle import END, IDEFICS3, INTERNVL, QUESTIONS, SMOLVLM, VIEW
from transformers import AutoModelForImageTextToText
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

from foveate.models import load_host
from foveate.models.errors import BadInput
from foveate.models.families.spelling import spelled
from foveate.models.inputs import PromptShape
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast
FPS = 0.04  # 25 seconds from frame to frame: minutes are told too


@pytest.fixture(scope="module", params=[INTERNVL, SMOLVLM])
def family(request):
    torch.set_num_threads(1)
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("model"), family)


@pytest.fixture(scope="module")
def host(folder):
    return load_host(folder)


def clip(first, t, size):
    return Clip.of(np.stack([tiny.picture(first + i, size, size) for i in range(t)]), FPS)


def in_place(reference, family, t, monkeypatch):
    """The text that HF's processor puts in a video's place."""
    if family == INTERNVL:
        return reference.replace_video_token({"pixel_values_videos": [torch.zeros(t, 1)]}, 0)
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda n: {2: "two", 3: "three", 4: "four"}[n])
    about = VideoMetadata(t, FPS, duration=t / FPS, frames_indices=list(range(t)))
    return reference.replace_video_token({"pixel_values": torch.zeros(1, t, 1), "video_metadata": [about]}, 0)


def test_a_video_generates_what_the_model_generates(host, folder, family, monkeypatch):
    model, reference = AutoModelForImageTextToText.from_pretrained(folder), tiny.processor(family)
    answers = set()
    for seed, t in ((0, 3), (8, 2), (14, 4), (21, 3)):
        question = QUESTIONS[seed % 4]
        p = host.open([clip(seed, t, VIEW[family])], [question])
        talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = reference.tokenizer.apply_chat_template(
            talk, chat_template=reference.chat_template, add_generation_prompt=True, tokenize=False
        )
        text = text.replace("<video>", in_place(reference, family, t, monkeypatch))
        ids = reference.tokenizer([text], return_tensors="pt")["input_ids"]
        assert p.rows[0].ids.tolist() == ids[0].tolist()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= host.inputs.tensors(host.inputs).of(p.rows, ids)
        how, frames = reference.image_processor, torch.from_numpy(p.rows[0].views[0].pixels).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(v)[:, None, None] for v in (how.image_mean, how.image_std))
        assert torch.allclose(inputs["pixel_values"].flatten(0, -4), (frames / 255 - mean) / std, atol=1e-5)
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=7)[0, ids.shape[1] :].tolist()
            logits = model(**inputs).logits[0, -1]
        p.decode(max_new_tokens=7)
        assert p.generated == [out[: out.index(END) + 1] if END in out else out]
        assert torch.allclose(p.logits[0], logits, atol=1e-4)
        answers.add(tuple(out))
    assert len(answers) > 1


@pytest.mark.parametrize(
    "plan",
    [
        UNCOMPRESSED,
        Plan.of(input=("downsample", 0.5)),
        Plan.of(input=("frames", 0.67), prefill=("fastv", 0.5)),
        Plan.of(outside=("visionzip", 0.25)),
        Plan.of(projector=("meteor", 0.5), prefill=("fastv", 0.5)),
    ],
    ids=lambda plan: plan.label(),
)
def test_a_forecast_is_the_ledger(host, family, plan):
    p = host.open([clip(0, 3, 50)], QUESTIONS[:1])
    p.run(plan)
    p.decode(max_new_tokens=2)
    assert p.ledger[0] == host.forecast(plan, p.shapes[0], new_tokens=len(p.generated[0]))
    assert p.tokens[0].grid[0] == (3 if plan["input"].method != "frames" else 2)
    assert p.rows[0].views[0].pixels.shape == (3, VIEW[family], VIEW[family], 3)


def test_words_about_frames_are_counted_for_every_number_of_them_and_legality_leaves_them_out(host):
    shape = host.open([clip(0, 4, 40)], QUESTIONS[:1]).shapes[0]
    (words,) = shape.layouts
    assert len(words.by_frames) == 4 and list(words.by_frames) == sorted(set(words.by_frames))
    fewer = host.reshaped(shape, [(2, *shape.grids[0][1:])])
    assert shape.n_text - fewer.n_text == words.by_frames[3] - words.by_frames[1]
    assert shape.bare == PromptShape(1, shape.grids)


def test_pictures_and_videos_stand_in_their_order(host):
    one, two = clip(0, 2, 40), tiny.picture(5, 20, 20)
    p = host.open([[one, two], [two, one]], QUESTIONS[:1] * 2)
    p.prefill()
    assert [[picture.kind for picture in row.pictures] for row in p.rows] == [["video", "image"], ["image", "video"]]
    assert p.counts["prefill"][0] == p.counts["prefill"][1] and not torch.allclose(p.logits[0], p.logits[1], atol=1e-3)
    with pytest.raises(BadInput, match="question 0: contains the video token '<video>'"):
        host.open([one], ["what is <video> ?"])


def test_idefics3_takes_pictures_only(tmp_path):
    host = load_host(tiny.build(tmp_path, IDEFICS3))
    with pytest.raises(BadInput, match="a video: this model takes pictures only"):
        host.open([clip(0, 2, 40)], QUESTIONS[:1])


def test_numbers_are_spelled():
    words = {0: "zero", 8: "eight", 13: "thirteen", 20: "twenty", 64: "sixty-four", 100: "one hundred"}
    words |= {128: "one hundred and twenty-eight", 999: "nine hundred and ninety-nine"}
    assert {n: spelled(n) for n in words} == words
    with pytest.raises(ValueError, match="spelled: 1000 is outside 0..999"):
        spelled(1000)

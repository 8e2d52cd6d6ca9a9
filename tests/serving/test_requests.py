"""What the processor returns, read back: pictures bit for bit, questions as far as a policy sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.controller import question_features
from foveate.models.families.llava import LlavaHost
from foveate.models.reference.architecture import build
from foveate.models.reference.processor import build_processor
from foveate.serving.requests import Unsupported, from_pictures, from_tensors
from foveate.tasks.registry import iter_samples


@pytest.fixture(scope="module")
def reference() -> LlavaHost:
    """The reference model's shape and processor, random weights."""
    processor = build_processor()
    return LlavaHost(build(processor.tokenizer), processor, None, "reference-shaped")


def processed(host, image, question):
    processor = host.inputs.processor
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    return dict(processor(images=[image], text=[text], return_tensors="pt"))


@pytest.mark.parametrize("task", ["scenes", "reading", "documents", "charts"])
def test_a_task_comes_back_as_it_went_in(reference, task):
    for sample in iter_samples([task], "test", 6):
        for turn in sample.turns:
            got = from_tensors(reference, processed(reference, sample.image, turn.question))
            own = reference.inputs.rows([sample.image], [turn.question])[0]
            assert np.array_equal(got.pictures[0], sample.image)
            assert got.rows[0].ids.tolist() == own.ids.tolist()
            assert np.array_equal(question_features(got.rows[0].question), question_features(turn.question))


def test_pictures_and_tensors_make_the_same_prompt(host, batch, inputs):
    here, there = from_pictures(host, *batch, {"max_new_tokens": 3}), from_tensors(host, inputs | {"max_new_tokens": 3})
    assert torch.equal(here.input_ids, inputs["input_ids"]) and here.prompts == there.prompts
    assert {(one.settings.limit, one.settings.pad, one.settings.plain) for one in (here, there)} == {(3, 0, True)}
    for a, b in zip(here.rows, there.rows, strict=True):
        assert np.array_equal(a.views[0].pixels, b.views[0].pixels) and a.ids.tolist() == b.ids.tolist()
        assert host.inputs.ids(a.question) == host.inputs.ids(b.question) or "or" in a.question  # "or" is unknown here


def test_right_padding_is_read_by_the_mask(host, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    order = mask.argsort(dim=1, descending=True, stable=True)
    moved = inputs | {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order)}
    assert from_tensors(host, moved).prompts == from_tensors(host, inputs).prompts


def test_a_prompt_without_the_template_is_a_question_as_a_whole(host, inputs):
    token = host.inputs.image_token_id
    ids = torch.tensor([[1, 8, 9, *[token] * 16, 10, 11]])
    row = from_tensors(host, {"input_ids": ids, "pixel_values": inputs["pixel_values"][:1]}).rows[0]
    assert row.question == host.inputs.text([8, 9, 10, 11]) and row.ids.tolist() == ids[0].tolist()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pixel_values": None}, "pixel_values"),
        ({"input_ids": None}, "input_ids"),
        ({"attention_mask": torch.ones(4, 3)}, "attention_mask"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups"),
        ({"streamer": object()}, "streamer"),
        ({"cache_implementation": "static"}, "cache_implementation = 'static': every layer's cache has a length"),
        ({"past_key_values": object()}, "past_key_values: a cache of an earlier call"),
        ({"inputs_embeds": torch.ones(1)}, "inputs_embeds"),
        ({"max_length": 5}, "new tokens"),
        ({"pixel_values": torch.zeros(4, 3, 16, 16)}, "pixel_values"),
        ({"pixel_values": torch.full((4, 3, 32, 32), torch.nan)}, "8-bit picture"),
    ],
)
def test_what_is_not_decided_on_has_a_reason(host, inputs, change, word):
    with pytest.raises(Unsupported, match=word):
        from_tensors(host, inputs | change)

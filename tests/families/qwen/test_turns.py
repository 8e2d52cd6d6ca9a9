"""A second turn where positions have three coordinates."""

import masked
import pytest
import torch
from processed import hf_talks

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

REPLIES, NEXT = ["red", "the left one"], ["is this green ?", "what is the colour of this thing ?"]


@pytest.mark.parametrize("name", [None, "fastv"])
def test_a_second_turn_is_the_models_own_without_what_was_dropped(hosts, original, tiny, kind, name):
    host, model, processor = hosts(kind), original(kind), tiny.original_processor(kind)
    images, questions = [tiny.picture(1, 48, 64), tiny.picture(2, 80, 40)], tiny.QUESTIONS[:2]
    p = host.open(images, questions)
    p.prefill(name and make("prefill", name), 0.5 if name else 1.0)
    later = p.follow(NEXT, REPLIES)
    inputs = hf_talks(processor, images, list(zip(questions, REPLIES, NEXT, strict=True)))
    for row, mask, ids in zip(later.rows, inputs["attention_mask"], inputs["input_ids"], strict=True):
        assert row.ids.tolist() == ids[mask.bool()].tolist()
    assert torch.allclose(later.logits, masked.masked_logits(model, p, inputs), atol=1e-5)
    if name is None:
        for settings in ({"do_sample": False}, {"num_beams": 3}, {"do_sample": True}):
            torch.manual_seed(4)
            wanted = model.generate(**inputs, max_new_tokens=6, **settings)[:, inputs["input_ids"].shape[1] :].tolist()
            torch.manual_seed(4)
            later.decode(max_new_tokens=6, **settings)
            assert later.generated == [w[: len(own)] for own, w in zip(later.generated, wanted, strict=True)]

"""Every prefill method that drops is the untouched model with the dropped tokens masked: places by three axes."""

import masked
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from foveate.models import load_host

pytestmark = [pytest.mark.fast, pytest.mark.matrix]
SIZES = [(32, 48), (48, 32), (16, 56)]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def pair(request, kind, folders):
    """A host and Hugging Face's model of the same folder, both with one kind of attention."""
    host = load_host(folders(kind))
    host.model.set_attn_implementation(request.param)
    return host, AutoModelForImageTextToText.from_pretrained(folders(kind), attn_implementation=request.param).eval()


@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
@pytest.mark.parametrize("name", masked.METHODS)
def test_dropping_is_masking(pair, kind, tiny, name, rows):
    host, model = pair
    images, questions = [tiny.picture(s, *SIZES[s]) for s in range(rows)], tiny.QUESTIONS[:rows]
    p = masked.run(host, name, images, questions, 0.25)
    processor = tiny.original_processor(kind)
    talks = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}] for q in questions]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    inputs = processor(images=[Image.fromarray(i) for i in images], text=texts, return_tensors="pt", padding=True)
    assert torch.allclose(p.logits, masked.masked_logits(model, p, inputs), atol=1e-5)
    masked.check_counts(p, name)

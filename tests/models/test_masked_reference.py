"""Every prefill method that drops is the untouched model with the dropped tokens masked: tiny LLaVA."""

import masked
import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.plans.plan import keep_count

pytestmark = [pytest.mark.fast, pytest.mark.matrix]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def pair(request, folders):
    """A host and Hugging Face's model of the same folder, both with one kind of attention."""
    folder = folders(text_tower=True)
    host = load_host(folder)
    host.model.set_attn_implementation(request.param)
    return host, AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=request.param).eval()


def inputs_of(p):
    """What the processor would make of a pass's rows, padded on the left."""
    ids = [torch.from_numpy(row.ids) for row in p.rows]
    longest = max(len(i) for i in ids)
    padded = [torch.cat([i.new_zeros(longest - len(i)), i]) for i in ids]
    mask = [torch.arange(longest) >= longest - len(i) for i in ids]
    pixels = torch.cat([p.host.pixels([row.views[0]]) for row in p.rows])
    return {"input_ids": torch.stack(padded), "attention_mask": torch.stack(mask).long(), "pixel_values": pixels}


@pytest.mark.parametrize("keep", [0.75, 0.25])
@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
@pytest.mark.parametrize("name", masked.METHODS)
def test_dropping_is_masking(pair, tiny, name, rows, keep):
    host, model = pair
    p = masked.run(host, name, [tiny.picture(s) for s in range(rows)], tiny.questions[:rows], keep)
    assert torch.allclose(p.logits, masked.masked_logits(model, p, inputs_of(p)), atol=1e-5)
    masked.check_counts(p, name)
    if not make("prefill", name).adaptive:
        assert p.counts["prefill"] == [keep_count(16, keep)] * rows


def test_the_reference_would_notice_a_token_that_is_not_masked(pair, tiny):
    host, model = pair
    p, whole = (host.open([tiny.picture(0)], tiny.questions[:1]) for _ in range(2))
    p.prefill(make("prefill", "fastv"), 0.25)
    whole.prefill()
    assert torch.allclose(whole.logits, masked.masked_logits(model, whole, inputs_of(whole)), atol=1e-5)
    assert not torch.allclose(p.logits, masked.masked_logits(model, whole, inputs_of(p)), atol=1e-3)

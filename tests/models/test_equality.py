"""With nothing compressed, a pass is the untouched Hugging Face model."""

import numpy as np
import pytest
import torch
from processed import hf_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.models import load_host

pytestmark = pytest.mark.fast

MODELS = [
    {"tower": "clip"},
    {"tower": "clip", "feature_layer": -1},
    {"tower": "clip", "strategy": "full"},
    {"tower": "clip", "decoder": "qwen2"},
    {"tower": "clip", "decoder": "mistral"},
    {"tower": "siglip"},
    {"tower": "siglip", "decoder": "qwen2", "feature_layer": -1},
    {"tower": "clip", "chat": None},
]


@pytest.fixture(scope="module")
def originals(folders):
    """The untouched model and processor of some settings, loaded once."""
    made = {}

    def get(settings):
        key = str(settings)
        if key not in made:
            folder = folders(**settings)
            made[key] = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        return made[key]

    return get


def hf_answers(original, images, questions, limit):
    model, processor = original
    inputs = hf_inputs(processor, images, questions)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
    return [until_end(row[inputs["input_ids"].shape[1] :].tolist()) for row in out], model, inputs


def until_end(ids):
    return ids[: ids.index(3) + 1] if 3 in ids else ids


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_each_row_alone_generates_what_the_model_generates(hosts, originals, tiny, settings):
    host = hosts(**settings)
    seen = set()
    for seed, question in enumerate(tiny.questions):
        image = tiny.picture(seed)
        (wanted,), _, _ = hf_answers(originals(settings), [image], [question], 7)
        p = host.open([image], [question])
        p.decode(max_new_tokens=7)
        assert p.generated == [wanted]
        seen.add(tuple(wanted))
    assert len(seen) > 1  # a model that says one thing only would prove nothing


@pytest.mark.parametrize("settings", MODELS[::3], ids=str)
def test_rows_of_different_lengths_generate_together_what_they_generate_alone(hosts, originals, tiny, settings):
    images = [tiny.picture(s) for s in range(4)]
    wanted, _, _ = hf_answers(originals(settings), images, tiny.questions, 7)  # padded on the left
    host = hosts(**settings)
    p = host.open(images, tiny.questions)
    p.decode(max_new_tokens=7)
    assert p.generated == wanted
    for row in range(4):
        alone = host.open([images[row]], [tiny.questions[row]])
        alone.prefill()
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_logits_behind_the_prompt_are_the_models(hosts, originals, tiny, settings):
    _, model, inputs = hf_answers(originals(settings), [tiny.picture(5)], [tiny.questions[1]], 1)
    p = hosts(**settings).open([tiny.picture(5)], [tiny.questions[1]])
    p.prefill()
    with torch.no_grad():
        assert torch.allclose(p.logits[0], model(**inputs).logits[0, -1], atol=1e-5)


def test_eager_attention_gives_the_same(folders, originals, tiny):
    images = [tiny.picture(s) for s in range(4)]
    wanted, _, _ = hf_answers(originals({"tower": "clip"}), images, tiny.questions, 7)
    host = load_host(folders(tower="clip"))
    host.model.set_attn_implementation("eager")
    p = host.open(images, tiny.questions)
    p.decode(max_new_tokens=7)
    assert p.generated == wanted


def test_pictures_of_any_size_are_framed_as_the_processor_does(hosts, originals, tiny):
    image = tiny.picture(1, height=57, width=90)
    p = hosts(tower="clip").open([image], ["left ?"])
    p.prefill()
    _, model, inputs = hf_answers(originals({"tower": "clip"}), [image], ["left ?"], 1)
    assert np.allclose(p.host.pixels(p.rows[0].views).numpy(), inputs["pixel_values"].numpy(), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(p.logits[0], model(**inputs).logits[0, -1], atol=1e-5)


def test_blind_rows_are_the_model_without_a_picture(hosts, originals, tiny):
    host = hosts(tower="clip")
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.blind([1])
    p.prefill()
    model, _ = originals({"tower": "clip"})
    row = p.rows[1]
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(row.ids[row.text])[None]).logits[0, -1]
    assert torch.allclose(p.logits[1], wanted, atol=1e-5)
    assert p.counts["prefill"] == [16, 0]


def test_scores_are_the_log_probabilities_of_the_answers(hosts, originals, tiny):
    _, model, inputs = hf_answers(originals({"tower": "clip"}), [tiny.picture(2)], [tiny.questions[0]], 1)
    host = hosts(tower="clip")
    p = host.open([tiny.picture(2), tiny.picture(3)], tiny.questions[:2])
    found = p.score([["red", "green thing two"], ["one"]])
    prompt = inputs["input_ids"]
    for answer, logprob in zip(["red", "green thing two"], found[0].logprob, strict=True):
        ids = torch.tensor([[*host.inputs.tokenizer(answer, add_special_tokens=False).input_ids, 3]])
        whole = torch.cat([prompt, ids], dim=1)
        with torch.no_grad():
            logits = model(
                input_ids=whole, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(whole)
            ).logits
        steps = logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        assert abs(steps.gather(1, ids.T).sum().item() - logprob) < 1e-4
    assert len(found[1].logprob) == 1


def test_the_greedy_flag_says_what_decoding_would_do(folders, tiny):
    host = load_host(folders(tower="clip"))
    images = [tiny.picture(s) for s in range(12)]
    questions = [tiny.questions[s % 4] for s in range(12)]
    p = host.open(images, questions)
    p.decode(max_new_tokens=6)
    host.ends = frozenset({3, p.generated[0][3]})  # a random model hardly ever ends by itself
    texts = p.decode(max_new_tokens=6)
    scores = p.score([[text, "three three"] for text in texts])
    for row, (text, ids, score) in enumerate(zip(texts, p.generated, scores, strict=True)):
        read_back = host.inputs.answer_ids(p.rows[row], text) if ids[-1] == 3 else ids[:-1]
        if read_back == ids[:-1] and host.inputs.text(ids[:-1]) == text:
            assert score.greedy[0] == (ids[-1] in host.ends)
        assert not score.greedy[1]
    assert len(p.generated[0]) <= 4

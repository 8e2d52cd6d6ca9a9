"""With nothing compressed, a pass is the untouched model: alone, padded, with several pictures in a row."""

import pytest
import torch
from PIL import Image

from foveate.models import load_host

pytestmark = pytest.mark.fast
SIZES = [(40, 48), (16, 56), (33, 20), (64, 64)]


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


@pytest.fixture(scope="module")
def processor(kind, tiny):
    return tiny.original_processor(kind)


def hf_inputs(processor, images, questions):
    """HF's batch, padded on the left; every row's images are a list."""
    texts = []
    for each, question in zip(images, questions, strict=True):
        content = [{"type": "image"}] * len(each) + [{"type": "text", "text": question}]
        talk = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
    flat = [Image.fromarray(image) for each in images for image in each]
    return processor(images=flat, text=texts, return_tensors="pt", padding=True)


@torch.no_grad()
def hf_answers(model, inputs, limit=7):
    out = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
    answers = [row[inputs["input_ids"].shape[1] :].tolist() for row in out]
    return [ids[: ids.index(2) + 1] if 2 in ids else ids for ids in answers]


@pytest.fixture(scope="module")
def singles(tiny, kind, original, processor):
    """Eight rows of one picture each, and what the model answers to each of them alone."""
    images = [[tiny.picture(s, *SIZES[s % 4])] for s in range(8)]
    questions = [tiny.QUESTIONS[s % 3] for s in range(8)]
    rows = zip(images, questions, strict=True)
    wanted = [hf_answers(original(kind), hf_inputs(processor, [i], [q]))[0] for i, q in rows]
    return images, questions, wanted


def test_each_row_alone_generates_what_the_model_generates(host, singles):
    for image, question, wanted in zip(*singles, strict=True):
        p = host.open(image, [question])
        p.decode(max_new_tokens=7)
        assert p.generated == [wanted]
    assert len({tuple(w) for w in singles[2]}) > 3  # a model that says one thing only would prove nothing


def test_the_same_question_has_other_answers_for_other_pictures(host, tiny):
    p = host.open([tiny.picture(s) for s in range(6)], ["what is this ?"] * 6)
    p.decode(max_new_tokens=7)
    assert len({tuple(ids) for ids in p.generated}) > 2


def test_rows_of_different_sizes_together_are_the_padded_batch_and_each_alone(host, kind, original, processor, singles):
    images, questions, wanted = singles
    p = host.open(images, questions)
    p.decode(max_new_tokens=7)
    assert p.generated == wanted
    assert p.generated == hf_answers(original(kind), hf_inputs(processor, images, questions))
    for row in (0, 3):
        alone = host.open([images[row]], [questions[row]])
        alone.prefill()
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)


def test_several_pictures_in_one_row_are_what_the_model_sees(host, kind, original, processor, tiny):
    images = [
        [tiny.picture(0, 40, 48), tiny.picture(1, 16, 24)],
        [tiny.picture(2, 24, 24)],
        [tiny.picture(3, 16, 16), tiny.picture(4, 64, 24), tiny.picture(5, 16, 24)],
    ]
    questions = tiny.QUESTIONS[:3]
    inputs = hf_inputs(processor, images, questions)
    p = host.open(images, questions)
    p.decode(max_new_tokens=7)
    assert p.generated == hf_answers(original(kind), inputs)
    with torch.no_grad():
        wanted = original(kind)(**inputs).logits[:, -1]
    assert torch.allclose(p.logits, wanted, atol=1e-4)
    assert p.counts["projector"] == [36, 9, 34]
    for row in range(3):
        alone = host.open([images[row]], [questions[row]])
        alone.prefill()
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)


def test_eager_attention_gives_the_same(folders, kind, singles):
    images, questions, wanted = singles
    host = load_host(folders(kind))
    host.model.set_attn_implementation("eager")
    p = host.open(images[:3], questions[:3])
    p.decode(max_new_tokens=7)
    assert p.generated == wanted[:3]


def test_half_precision_runs(folders, kind, singles):
    images, questions, _ = singles
    host = load_host(folders(kind), dtype="bfloat16")
    p = host.open(images[:2], questions[:2])
    p.prefill()
    full = load_host(folders(kind)).open(images[:2], questions[:2])
    full.prefill()
    assert torch.isfinite(p.logits).all()
    assert torch.nn.functional.cosine_similarity(p.logits, full.logits).min() > 0.9


def test_blind_rows_are_the_model_without_a_picture(host, kind, original, singles):
    images, questions, _ = singles
    p = host.open(images[:2], questions[:2])
    p.blind([1])
    p.prefill()
    row = p.rows[1]
    with torch.no_grad():
        wanted = original(kind)(input_ids=torch.from_numpy(row.ids[row.view < 0])[None]).logits[0, -1]
    assert torch.allclose(p.logits[1], wanted, atol=1e-4)
    assert p.counts["prefill"] == [row0_tokens(p), 0]


def row0_tokens(p):
    return p.rows[0].shape.n_visual


def test_the_models_mutable_position_state_is_neither_read_nor_written(folders, kind, singles):
    images, questions, wanted = singles
    host = load_host(folders(kind))
    for state in (None, torch.full((3, 1), 1000)):
        host.model.model.rope_deltas = state
        p = host.open(images[:2], questions[:2])
        p.decode(max_new_tokens=7)
        assert p.generated == wanted[:2]
        assert host.model.model.rope_deltas is state

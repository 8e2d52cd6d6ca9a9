"""Attention supervision of the reference model: where questions point, and the loss on the decoder's attention."""

import numpy as np
import pytest
import torch

from foveate.models.reference.architecture import DECODER_LAYERS, build, build_text_tower, encode
from foveate.models.reference.batches import collate, coverage, looks_of, pack, turn_looks
from foveate.models.reference.objectives import AttentionRows, Learner
from foveate.models.reference.processor import build_tokenizer
from foveate.tasks.base import DENSE_WHAT, Turn
from foveate.tasks.registry import regime_sample

REGIMES = ("search", "counting", "relations", "tables", "charts", "reading", "digits")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def additive(module, args, kwargs):
    """Eager attention adds its mask."""
    mask = kwargs["attention_mask"]
    kwargs["attention_mask"] = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return args, kwargs


def rows(tokenizer, count, regime="tables"):
    samples = [regime_sample(regime, "host-train", i) for i in range(count)]
    return [(s, pack(s, tokenizer), tokenizer(s.caption).input_ids[:32]) for s in samples]


def test_a_box_covers_patches_by_area():
    found = coverage(((4.0, 0.0, 20.0, 16.0),)).reshape(12, 12)  # half of patch 0, all of 1, half of 2; two rows
    np.testing.assert_allclose(found[:2, :4], [[0.125, 0.25, 0.125, 0]] * 2)
    assert found.sum() == pytest.approx(1) and coverage(()).sum() == 0


def test_spelled_answers_are_looked_up_character_by_character():
    boxes = ((0.0, 0.0, 8.0, 8.0), (8.0, 0.0, 16.0, 8.0))
    turn = Turn("what is the total?", ("47",), "total", via=(((40.0, 40.0, 48.0, 48.0),),), at=boxes)
    looks = turn_looks(turn, length=3)  # "4", "7" and the end token
    assert looks[:, 2, 1:].argmax(-1).tolist()[:2] == [0, 1] and looks[2, 2, :3].tolist() == [0, 0.5, 0.5]
    assert (looks[:, :2, 1:].argmax(-1) == 5 * 12 + 5).all()  # the lone thing named, for both heads


@pytest.mark.parametrize("n", [0, 1, 4])
def test_who_counts_looks_at_each_thing_and_at_the_start_token_alike(n):
    boxes = tuple((8.0 * k, 0.0, 8.0 * k + 8, 8.0) for k in range(n))
    looks = turn_looks(Turn("how many?", (str(n),), "count_objects", at=boxes), length=2)
    np.testing.assert_allclose(looks[:, 2, : n + 1], 1 / (n + 1))
    np.testing.assert_allclose(looks[:, 2].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("regime", REGIMES)
def test_questions_know_where_their_answer_stands(tokenizer, regime):
    for sample, packed, _ in rows(tokenizer, 6, regime):
        looks = looks_of(sample, packed)
        assert (looks[packed[3] == -100] == 0).all()
        answered = [t for t in sample.turns[: packed[1].max() + 1] if t.answers[0] not in ("0", "no")]
        assert all(turn.at for turn in answered)
        assert set(looks.sum(-1).round(4).ravel().tolist()) <= {0.0, 1.0}


def test_what_a_character_stands_on_carries_its_label(tokenizer):
    """The boxes and the dense labels are made apart: they have to agree."""
    hit = seen = 0
    for sample, _, _ in rows(tokenizer, 20, "receipts"):
        for turn in sample.turns:
            for character, (left, top, right, bottom) in zip(turn.answers[0], turn.at, strict=True):
                x, y = int((left + right) / 2 // 4), int((top + bottom) / 2 // 4)
                seen, hit = seen + 1, hit + (DENSE_WHAT[sample.dense[y, x, 0]] == character)
    assert seen > 80 and hit > 0.9 * seen


def test_the_loss_is_the_cross_entropy_of_the_decoder_s_own_attention(tokenizer):
    torch.manual_seed(0)
    model = build(tokenizer, DECODER_LAYERS // 2).eval()
    batch = collate(rows(tokenizer, 3))
    learner = Learner(model, build_text_tower(tokenizer)).eval()
    feature, _ = encode(model.model.vision_tower, batch.pixels)
    seen = {}
    model.set_attn_implementation("eager")
    try:
        layers = model.model.language_model.layers
        hooks = [
            layers[i].self_attn.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out[1]})) for i in (1, 2)
        ]
        hooks.append(model.model.language_model.register_forward_pre_hook(additive, with_kwargs=True))
        with torch.no_grad(), AttentionRows(model, batch) as attended:
            learner.answer_logits(feature[:, 1:], batch)
    finally:
        model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()
    wanted, parts = torch.nonzero(batch.target != -100), []
    for layer, entries in ((1, (0, 1)), (2, (2, 2))):
        for b, s in wanted.tolist():
            for head, entry in enumerate(entries):
                target = batch.looks[b, s, entry]
                if target.sum() > 0.5:
                    parts.append(-(seen[layer][b, head, 145 + s, :145].log() * target).sum())
    assert attended.loss() == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)

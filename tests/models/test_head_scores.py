"""Scores of heads: what they are made of, and the cache whose budgets follow them."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveate.compressors.decode.sparsemm import HeadScores
from foveate.models.head_scores import Written, _strongest, entries_of, head_scores, written
from foveate.models.learned import attach, save
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast

PLAN = Plan.of(decode=("sparsemm", 0.5))


def with_scores(host, seed=0):
    """Gives the host random scores, of which half are nearly nothing."""
    table = HeadScores(host.decoder_depth, host.decoder.heads)
    drawn = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) ** 6
    table.load_state_dict({"scores": drawn})
    host.learned["decode", "sparsemm"] = table.requires_grad_(False)
    return host


@pytest.mark.parametrize(
    ("size", "boxes", "wanted"),
    [
        ((32, 32), [(0, 0, 8, 8)], [0]),
        ((32, 32), [(0, 8, 8, 16), (8, 8, 24, 16)], [4, 5, 6]),
        ((32, 32), [(6, 0, 18, 8)], [0, 1, 2]),  # a quarter of the first patch and of the third
        ((32, 32), [(7, 0, 17, 8)], [1]),
        ((32, 64), [(16, 0, 24, 8), (0, 0, 8, 8)], [0]),  # the middle of a wide picture is what the model sees
    ],
)
def test_entries_of_a_text_are_those_whose_patches_it_covers(host, size, boxes, wanted):
    row = host.inputs.row(np.zeros((*size, 3), np.uint8), "what ?", 0)
    assert (entries_of(host, row, boxes) - row.first[0]).tolist() == wanted


@torch.no_grad()
def test_the_strongest_key_of_each_step_is_the_models(folders, host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.decode(max_new_tokens=5)
    model = AutoModelForImageTextToText.from_pretrained(folders(text_tower=True), attn_implementation="eager")
    ids = [*p.rows[0].ids.tolist(), *p.generated[0][:-1]]
    pixels = host.pixels([p.rows[0].views[0]])
    maps = model(input_ids=torch.tensor([ids]), pixel_values=pixels, output_attentions=True).attentions
    first = len(p.rows[0].ids) - 1
    for strongest, map_ in zip(_strongest(p, p.generated[0]), maps, strict=True):
        assert torch.equal(strongest, map_[0, :, first:].argmax(-1))


def test_a_head_scores_where_its_strongest_key_lies_on_the_text_that_is_produced(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.decode(max_new_tokens=4)
    parts = [host.inputs.text([token]) for token in p.generated[0]]
    step = next(i for i, part in enumerate(parts) if part and parts.count(part) == 1)
    asked = Written(tiny.picture(0), tiny.questions[0], parts[step], ((0, 0, 32, 16),))  # the upper half: 8 tokens
    scores, tokens = head_scores(host, [asked], new_tokens=4)
    first = p.rows[0].first[0]
    for layer, strongest in enumerate(_strongest(p, p.generated[0])):
        hit = (strongest[:, step] >= first) & (strongest[:, step] < first + 8)
        assert scores[layer].tolist() == (hit / 8).tolist()
    assert tokens == 1 and 0 < float(scores.max()) <= 1 / 8
    twice, tokens = head_scores(host, [asked, asked], new_tokens=4)
    assert torch.equal(twice, scores) and tokens == 2


def test_a_model_that_writes_nothing_of_the_texts_is_told_so(host, tiny):
    asked = Written(tiny.picture(0), tiny.questions[0], "~", ((0, 0, 32, 16),))
    with pytest.raises(ValueError, match="wrote nothing of the texts on 1 pictures; no head can be scored"):
        head_scores(host, [asked], new_tokens=3)


def test_drawn_pictures_have_a_box_for_each_character():
    for each in islice(written(), 6):
        assert len(each.boxes) == len(each.text) and each.picture.shape == (96, 96, 3)
        assert all(0 <= left < right <= 97 and 0 <= top < bottom <= 97 for left, top, right, bottom in each.boxes)


def test_without_scores_the_method_is_masked_with_the_command_that_measures_them(host):
    assert host.supports("decode", "sparsemm") == (
        "sparsemm: has no weights for this host; `foveate calibrate-heads --model MODEL` makes them"
    )


def test_scores_are_a_file_of_their_host(fresh, tmp_path):
    table = with_scores(fresh).learned.pop(("decode", "sparsemm"))
    path = save(tmp_path, fresh, "decode", "sparsemm", table, {"pictures": 3}, torch.float32)
    assert path.name == "decode-sparsemm.safetensors" and fresh.supports("decode", "sparsemm") is not None
    attach(fresh, tmp_path)
    assert fresh.supports("decode", "sparsemm") is None
    assert torch.equal(fresh.learned["decode", "sparsemm"].scores, table.scores)


def test_a_cache_by_scores_frees_what_the_ledger_says_and_was_known_before(fresh, tiny):
    host = with_scores(fresh)
    rows = [tiny.picture(0), tiny.picture(1)]
    p = host.open(rows, [tiny.questions[0]] * 2).run(PLAN)
    heads = p.cached[0]
    assert any(isinstance(layer, tuple) and layer[0] != layer[1] for layer in heads)
    assert sum(cache.bytes for cache in p.caches) == sum(ledger.kv_bytes_end for ledger in p.ledger)
    text = p.shapes[0].n_text
    spent = [head - text for layer in heads for head in ((layer,) * 2 if isinstance(layer, int) else layer)]
    assert 0 < sum(spent) <= 8 * len(spent)  # what a head cannot use is not handed on
    p.decode(max_new_tokens=3)
    for row in range(2):
        assert host.forecast(PLAN, p.shapes[row], new_tokens=len(p.generated[row])) == p.ledger[row]


def test_equal_scores_are_no_other_cache_than_the_mean(fresh, tiny):
    fresh.learned["decode", "sparsemm"] = HeadScores(4, 4).requires_grad_(False)
    p = fresh.open([tiny.picture(0)], [tiny.questions[0]]).run(PLAN)
    assert p.cached[0] == [p.shapes[0].n_text + 8] * 4 and p.caches[0].heads is None


def test_answers_behind_heads_of_unequal_length_do_not_depend_on_batch_mates(fresh, tiny):
    host, images = with_scores(fresh, seed=1), [tiny.picture(s) for s in range(3)]
    together = host.open(images, tiny.questions[:3]).run([PLAN, Plan.of(decode=("look_m", 0.25)), PLAN])
    together.decode(max_new_tokens=4)
    for row in (0, 2):
        alone = host.open([images[row]], [tiny.questions[row]]).run(PLAN)
        alone.decode(max_new_tokens=4)
        assert alone.generated[0] == together.generated[row] and alone.ledger[0] == together.ledger[row]


def test_the_method_itself_stays_what_it_is(fresh):
    method = with_scores(fresh).make("decode", "sparsemm")
    assert method.network is fresh.learned["decode", "sparsemm"]
    assert dataclasses.replace(method, network=None) == method

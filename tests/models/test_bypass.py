"""Tokens that go around layers: p-MoD in a tiny LLaVA, held against a twin that packs nothing and caches nothing."""

import bypassed
import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.bypass import Bypass, around
from foveate.models.ragged import exists
from foveate.plans.plan import keep_count

pytestmark = pytest.mark.fast


def shares(count):
    """Layer -> tokens of 16 that run through it: at least 3/4 and 1/4 of them, and in the last layer the count."""
    return {1: max(12, count), 2: max(4, count), 3: count}


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def pair(request, folders):
    """A host and Hugging Face's model of the same folder, both with one kind of attention."""
    folder = folders(text_tower=True)
    host = load_host(folder)
    host.model.set_attn_implementation(request.param)
    return host, AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=request.param).eval()


@pytest.mark.parametrize("keep", [0.75, 0.3, 0.01])
@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
def test_packing_is_masking(pair, tiny, rows, keep):
    host, model = pair
    method, count = bypassed.p_mod(host), keep_count(16, keep)
    p = host.open([tiny.picture(s) for s in range(rows)], tiny.questions[:rows])
    p.prefill(method, keep)
    for row in range(rows):
        wanted = bypassed.twin(model, p, row, method, shares(count))
        assert torch.allclose(p.logits[row], wanted[0], atol=1e-5)
        assert p.counts["layers"][row] == [16, *shares(count).values()]
        words = len(p.rows[row].text)
        assert p.cached[row] == [words + n for n in (16, *shares(count).values())]
        for cache in p.caches:
            stream, length = cache.stream, int(cache.length[row])
            assert torch.equal(stream.place[row, :length, 0], stream.entry[row, :length])
            assert int(cache.next_place[row]) == len(p.rows[row].ids)


@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
def test_an_answer_goes_on_behind_each_layers_own_cache(pair, tiny, rows):
    host, model = pair
    method, answer = bypassed.p_mod(host, seed=1), "green thing two"
    p = host.open([tiny.picture(s) for s in range(rows)], tiny.questions[:rows])
    p.prefill(method, 0.25)
    scores = p.score([[answer]] * rows)
    for row in range(rows):
        ids = host.inputs.answer_ids(p.rows[row], answer)
        logp = bypassed.twin(model, p, row, method, shares(4), ids).log_softmax(-1)
        wanted = sum(float(logp[i, token]) for i, token in enumerate([*ids, 3]))
        assert scores[row].logprob[0] == pytest.approx(wanted, abs=1e-4)


def test_a_token_that_went_around_comes_back_as_its_multiple(host, tiny):
    method = bypassed.p_mod(host)
    p = host.open([tiny.picture(0)], tiny.questions[:1])
    p.peek()
    x, start = p.opened.stream.x[0].clone(), p.rows[0].first[0]  # behind layer 0
    p.prefill(method, 0.25)
    weights = [1 + 0.2 * method.network(x[None, start : start + 16], 1).tanh()[0]]
    ran = {start + i for i in weights[0].argsort(descending=True)[:12].tolist()}
    assert set(p.caches[1].stream.entry[0, p.caches[1].stream.visual[0]].tolist()) == ran
    never = [i for i in range(16) if not any((cache.stream.entry[0] == start + i).any() for cache in p.caches[1:])]
    assert never
    for i in never:  # all three layers only multiply it
        wanted = x[start + i]
        for layer in (1, 2, 3):
            wanted = wanted * (1 + 0.2 * method.network(wanted[None, None], layer).tanh()[0, 0])
        assert torch.allclose(p.opened.stream.x[0, start + i], wanted, atol=1e-5)
    last = p.opened.stream  # behind the last layer all are there again, in their places
    assert last.entry[0, : int(last.length[0])].tolist() == list(range(len(p.rows[0].ids)))


@torch.no_grad()
def test_with_all_tokens_and_weights_of_one_a_layer_is_the_plain_one(host, tiny):
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.peek()
    stream = p.opened.stream
    everyone = Bypass(exists(stream.length, stream.x.shape[1]), torch.ones(stream.x.shape[:2]))
    out, cache = around(host.decoder, 1, stream, everyone)
    plain, wanted = host.decoder.layer(1, stream, p.opened.rotation)
    for row, s in enumerate(stream.length.tolist()):
        assert torch.equal(out[row, :s], plain[row, :s]) and torch.equal(
            cache.keys[row, :, :s], wanted.keys[row, :, :s]
        )


def test_rows_of_a_batch_do_not_see_each_other(host, tiny):
    methods = [bypassed.p_mod(host), None, make("prefill", "pact"), bypassed.p_mod(host), make("prefill", "fastv")]
    keeps, questions = [0.25, 1.0, 0.5, 0.6, 0.25], [*tiny.questions[:4], tiny.questions[0]]
    images = [tiny.picture(s) for s in range(5)]
    p = host.open(images, questions)
    p.prefill(methods, keeps)
    together = p.score([["red"], ["one"], ["left thing"], ["blue two"], ["red"]])
    for row in range(5):
        alone = host.open(images[row : row + 1], questions[row : row + 1])
        alone.prefill(methods[row], keeps[row])
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
        assert alone.counts["layers"][0] == p.counts["layers"][row] and alone.cached[0] == p.cached[row]
        assert alone.ledger[0].total == sum(f for s, _, f, _ in p.ledger[row].entries if s != "score")
        (score,) = alone.score([[["red"], ["one"], ["left thing"], ["blue two"], ["red"]][row]])
        assert score.logprob == pytest.approx(together[row].logprob, abs=1e-4)


def test_a_layers_cache_holds_what_ran_through_it_and_is_paid_for_as_such(host, tiny):
    p = host.open([tiny.picture(0)], tiny.questions[:1])
    p.prefill(bypassed.p_mod(host), 0.25)
    entries = p.cached[0]
    each = 2 * host.decoder.kv_heads * host.decoder.head_dim * 4
    assert p.ledger[0].kv_bytes_prefill == each * sum(entries) == sum(cache.bytes for cache in p.caches)
    routers = {what: flops for _, what, flops, _ in p.ledger[0].entries}["p_mod"]
    assert routers == 3 * 2 * 16 * 32
    p.choose_decode(make("decode", "random"), 0.5)
    words = len(p.rows[0].text)
    assert p.cached[0] == [words + 8, words + 6, words + 2, words + 2]
    assert p.score([["red"]])[0].logprob[0] < 0

"""Signals of the decoder and of the question equal what the model's own eager run says."""

from dataclasses import dataclass, replace

import pytest
import torch
from spying import spy

from foveate.compressors.base import KVReducer, KVReduction
from foveate.compressors.phrases import parse, phrase_similarity
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal
from foveate.models.decoder_signals import At, text_attention, text_peak
from foveate.models.errors import HostError
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("layer", "site"), [(0, 1), (1, 2), (2, 2)])
def test_the_last_query_is_the_models_attention(host, eager, tiny, layer, site):
    method, found = spy([Signal("last_query", layer)], "prefill", site=(site, 1))
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])  # prompts of different lengths
    p.prefill(method, 0.5)
    for row in range(2):
        _, text = eager({"text_tower": True}, p, row)
        start = p.rows[row].first[0]
        assert torch.allclose(found["last_query"][row], text.attentions[layer][0, :, -1, start : start + 16], atol=1e-5)


@pytest.mark.parametrize(("layer", "site"), [(0, 1), (1, 2), (2, 2)])
def test_visual_keys_are_what_the_cache_will_hold(host, tiny, layer, site):
    method, found = spy([Signal("visual_keys", layer)], "prefill", site=(site, 1))
    p, plain = (host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2]) for _ in range(2))
    p.prefill(method, 0.5)
    plain.prefill()
    for row in range(2):
        start = p.rows[row].first[0]
        cached = plain.caches[layer].keys[row, :, start : start + 16].mean(0)
        assert torch.allclose(found["visual_keys"][row], cached, atol=1e-5)


def heads_of(decoder, layer, x):
    """Queries and keys (heads, S, e) of a layer's input (S, D), not rotated, one key for each query head."""
    block = decoder.layers[layer]
    x = block.input_layernorm(x)
    q, k = (part(x).unflatten(-1, (-1, 8)).transpose(0, 1) for part in (block.self_attn.q_proj, block.self_attn.k_proj))
    return q, k.repeat_interleave(2, dim=0)


@pytest.mark.parametrize(("layer", "site"), [(0, 1), (2, 2)])
@torch.no_grad()
def test_queries_that_are_not_rotated_are_the_models_without_its_rotation(host, tiny, layer, site):
    method, found = spy([Signal(kind, layer) for kind in ("unrotated_query", "mean_query")], "prefill", site=(site, 1))
    p, plain = (host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2]) for _ in range(2))
    p.prefill(method, 0.5)
    plain.prefill()
    for row in range(2):
        start, length = p.rows[row].first[0], len(p.rows[row].ids)
        q, k = heads_of(host.decoder, layer, plain.caches[layer].stream.x[row, :length])
        logits = (q[:, -1:] @ k.transpose(-1, -2))[:, 0] * 8**-0.5
        assert torch.allclose(found["unrotated_query"][row], logits.softmax(-1)[:, start : start + 16], atol=1e-5)
        end = start + 16  # words behind the picture have no part in the mean
        logits = (q[:, :end].mean(1, keepdim=True) @ k[:, :end].transpose(-1, -2))[:, 0] * 8**-0.5
        assert torch.allclose(found["mean_query"][row], logits.softmax(-1)[:, start:], atol=1e-5)


@torch.no_grad()
def test_keys_and_states_of_a_layer_are_the_models(host, tiny):
    kinds = ("wide_keys", "hidden_states", "post_norm")
    method, found = spy([Signal(kind, 1) for kind in kinds], "prefill", site=(2, 1))
    p, plain = (host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2]) for _ in range(2))
    p.prefill(method, 0.5)
    plain.prefill()
    block = host.decoder.layers[1]
    for row in range(2):
        start = p.rows[row].first[0]
        here = slice(start, start + 16)
        keys = plain.caches[1].keys[row, :, here]
        assert torch.allclose(found["wide_keys"][row], torch.cat([keys[0], keys[1]], dim=-1), atol=1e-5)
        assert torch.allclose(found["hidden_states"][row], plain.caches[1].stream.x[row, here], atol=1e-5)
        behind = plain.caches[2].stream.x[row, here] - block.mlp(found["post_norm"][row])  # the residual that it normed
        assert torch.allclose(found["post_norm"][row], block.post_attention_layernorm(behind), atol=1e-4)
    assert plain.caches[1].normed is None  # nobody asked


def test_what_a_layer_has_not_kept_cannot_be_read(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    with pytest.raises(HostError, match="post_norm: layer 1 has not run, or ran before it was known"):
        p.prefill(spy([Signal("post_norm", 1)], "prefill", site=(1, 1))[0], 0.5)


@torch.no_grad()
def test_a_frame_is_the_mean_of_its_tokens_and_has_a_cosine_with_the_question(host, tiny):
    method, found = spy([Signal("frame_vectors"), Signal("frame_similarity")], "prefill")
    p = host.open([[tiny.picture(0), tiny.picture(1)]], ["left ?"])
    p.thin(make("outside", "stride"), 0.25)
    p.prefill(method, 0.5)
    means = torch.stack([state.x.mean(0) for state in p.states["encoder"]])
    assert torch.allclose(found["frame_vectors"][0], means.repeat_interleave(4, dim=0), atol=1e-5)
    vector = host.text.embed(["left ?"])[0][0]
    seen = host.tower.norm_out(means) @ host.text.projection.T
    wanted = torch.cosine_similarity(seen, vector[None]).repeat_interleave(4)
    assert torch.allclose(found["frame_similarity"][0], wanted, atol=1e-5)


def test_accumulated_attention_is_the_models_column_sum(host, eager, tiny):
    given = []

    @dataclass(frozen=True)
    class Watch(KVReducer):
        name = "watch"
        stages = ("decode",)

        def signals(self, depth):
            return frozenset(Signal("accumulated_attention", layer) for layer in range(depth))

        def plan(self, cache, count):
            given.append((cache.layer, cache.signals["accumulated_attention"], cache.visual))
            b, k, s, _ = cache.keys.shape
            gone = torch.arange(s) < cache.visual.int().argmax() + int(cache.visual.sum()) - count
            keep = torch.arange(s)[~(gone & cache.visual)]
            return KVReduction(keep.expand(b, k, -1))

    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    p.choose_decode(Watch(), 0.5)
    _, text = eager({"text_tower": True}, p)
    assert [layer for layer, _, _ in given] == [0, 1, 2, 3]
    for layer, value, visual in given:
        column = text.attentions[layer][0].sum(dim=1)  # over queries
        assert torch.allclose(value[0], column.view(2, 2, -1).sum(dim=1), atol=1e-4)
        assert visual.nonzero().flatten().tolist() == list(range(3, 19))


@pytest.mark.parametrize(("layer", "site"), [(0, 1), (1, 2), (2, 2)])
def test_attention_of_the_words_is_the_models(host, eager, tiny, layer, site):
    method, found = spy([Signal("text_attention", layer)], "prefill", site=(site, 1))
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])  # prompts of different lengths
    p.prefill(method, 0.5)
    for row in range(2):
        _, text = eager({"text_tower": True}, p, row)
        start = p.rows[row].first[0]
        words = text.attentions[layer][0].mean(0)[start + 16 :, start : start + 16]  # those before see no picture
        wanted = torch.stack([words.sum(0), words.amax(0)])
        assert torch.allclose(found["text_attention"][row], wanted, atol=1e-5)


@pytest.mark.parametrize(("layer", "site"), [(0, 1), (2, 2)])
def test_the_peak_of_the_words_is_that_of_every_head_behind_the_picture(host, eager, tiny, layer, site):
    method, found = spy([Signal("text_peak", layer)], "prefill", site=(site, 1))
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.prefill(method, 0.5)
    for row in range(2):
        _, text = eager({"text_tower": True}, p, row)
        start = p.rows[row].first[0]
        wanted = text.attentions[layer][0][:, start + 16 :, start : start + 16].amax((0, 1))
        assert torch.allclose(found["text_peak"][row], wanted, atol=1e-5)


@torch.no_grad()
def test_words_between_visual_entries_have_no_part_in_the_peak(host, tiny):
    p = host.open([tiny.picture(0)], tiny.questions[:1])
    p.peek()
    stream = p.opened.caches[0].stream
    visual = stream.visual.clone()
    hole = visual[0].nonzero()[8]  # as if a word stood between two frames
    visual[0, hole] = False
    rows = torch.arange(1)
    parted = replace(stream, visual=visual)
    peak = text_peak(At(host.decoder, 0, parted, None, rows))[0]
    behind = text_peak(At(host.decoder, 0, stream, None, rows))[0]
    assert torch.equal(peak, torch.cat([behind[:8], behind[9:]]))
    summed = text_attention(At(host.decoder, 0, parted, None, rows))[0, 0]
    whole = text_attention(At(host.decoder, 0, stream, None, rows))[0, 0]
    assert (summed[:8] > whole[:8] + 1e-4).all()  # that word looks, too


def test_the_rank_by_cls_follows_the_tokens_into_the_decoder(host, eager, tiny):
    method, found = spy([Signal("cls_rank")], "prefill")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(make("outside", "stride"), 0.5)
    p.prefill(method, 0.5)
    vision, _ = eager({"text_tower": True}, p)
    cls = vision.attentions[2][0, :, 0, 1:].mean(0)
    rank = (cls[None] > cls[:, None]).sum(1) / 16
    kept = p.states["outside"][0].position
    assert torch.allclose(found["cls_rank"][0], rank[kept])
    pooled = host.open([tiny.picture(0)], [tiny.questions[0]])
    pooled.project(make("projector", "average_pool"), 0.25)
    pooled.prefill(method, 0.5)
    quarters = rank.view(2, 2, 2, 2).amin((1, 3)).flatten()  # a new place has the best rank of those it covers
    assert torch.allclose(found["cls_rank"][0], quarters)


def watching(asked):
    """A method of the stage `decode` that keeps the first visual entries and writes down what it was given."""
    given = []

    @dataclass(frozen=True)
    class Watch(KVReducer):
        name = "watch"
        stages = ("decode",)

        def signals(self, depth):
            return frozenset(asked(depth))

        def plan(self, cache, count):
            given.append(cache)
            b, k, s, _ = cache.keys.shape
            keep = torch.arange(s)[~cache.visual | (cache.visual.cumsum(0) <= count)]
            return KVReduction(keep.expand(b, k, -1))

    return Watch(), given


def test_recent_attention_is_the_mean_of_the_models_last_rows(host, eager, tiny):
    method, given = watching(lambda depth: [Signal("recent_attention", layer) for layer in range(depth)])
    p = host.open([tiny.picture(0)], ["what is " + "the red thing " * 11 + "?"])  # 36 words behind the picture
    p.choose_decode(method, 0.5)
    _, text = eager({"text_tower": True}, p)
    for cache in given:
        rows = text.attentions[cache.layer][0, :, -32:].mean(1)
        assert torch.allclose(cache.signals["recent_attention"][0], rows.view(2, 2, -1).mean(1), atol=1e-5)
    assert [cache.layer for cache in given] == [0, 1, 2, 3]


def test_relevance_of_frames_is_read_in_one_layer_and_paid_for_once(host, tiny):
    recent = [Signal("recent_attention", layer) for layer in range(4)]
    method, given = watching(lambda depth: [Signal("frame_relevance", 2), *recent])
    p = host.open([[tiny.picture(0), tiny.picture(1)]], ["left ?"])
    p.prefill(make("prefill", "fastv"), 0.5)
    p.choose_decode(method, 0.5)
    at = given[2]
    value = at.signals["recent_attention"][0].mean(0)
    means = [float(value[at.frame == f].mean()) for f in range(2)]
    for cache in given:
        assert sorted(set(cache.frame.tolist())) == [-1, 0, 1] and cache.frame.shape == cache.visual.shape
        for f in range(2):
            assert cache.signals["frame_relevance"][0][cache.frame == f].tolist() == pytest.approx(
                [means[f]] * int((cache.frame == f).sum()), abs=1e-6
            )
        assert (cache.signals["frame_relevance"][0][~cache.visual] == 0).all()
    entries = p.opened.entries[0]
    cost = lambda n: 2 * min(32, n) * 32 * (32 + n)  # noqa: E731
    wanted = sum(map(cost, entries)) + cost(entries[2])
    assert [f for s, w, f, _ in p.ledger[0].entries if (s, w) == ("decode", "signals")] == [wanted]


def test_survivors_are_the_entries_that_the_last_layer_has(host, tiny):
    method, given = watching(lambda depth: [Signal("survivors", layer) for layer in range(depth)])
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.prefill(make("prefill", "pyramiddrop"), 0.25)
    wanted = [torch.isin(cache.stream.entry[0], p.caches[-1].stream.entry[0]) for cache in p.caches]
    p.choose_decode(method, 0.9)
    for cache in given:
        assert cache.signals["survivors"][0].bool().tolist() == wanted[cache.layer].tolist()
        assert int((cache.signals["survivors"][0].bool() & cache.visual).sum()) == 4


def test_text_similarity_is_a_cosine_and_follows_the_question(host, tiny):
    method, found = spy([Signal("text_similarity")], "outside")
    image = tiny.picture(0)
    p = host.open([image, image], tiny.questions[:2])
    p.thin(method, 0.5)
    value = found["text_similarity"]
    assert value.shape == (2, 16)
    assert value.abs().max() <= 1 + 1e-6
    assert not torch.allclose(value[0], value[1])
    text, tower = host.text, host.tower
    ids = torch.tensor([text.ids(tiny.questions[1])])
    with torch.no_grad():
        vector = text.model(input_ids=ids).text_embeds[0]
        tokens = tower.norm_out(p.states["encoder"][1].x) @ text.projection.T
    assert torch.allclose(value[1], torch.cosine_similarity(tokens, vector[None]), atol=1e-5)


def test_a_question_is_a_vector_of_its_row_embedded_and_paid_for_once(host, tiny):
    method, found = spy([Signal("question")], "encoder")
    p = host.open([tiny.picture(0)] * 2, tiny.questions[:2])
    p.encode([method, method], 0.5)
    vectors, flops = host.text.embed(tiny.questions[:2])
    assert torch.allclose(found["question"], vectors, atol=1e-6) and found["question"].shape == (2, 12)
    other, _ = spy([Signal("question"), Signal("text_similarity")], "outside")
    p.thin(other, 0.5)
    for ledger, cost in zip(p.ledger, flops, strict=True):
        assert [f for _, what, f, _ in ledger.entries if what == "question embedding"] == [cost]
        assert ("encoder", "signals") not in {(stage, what) for stage, what, *_ in ledger.entries}


def test_signals_are_charged_to_the_row_and_stage_that_asked(host, tiny):
    method, _ = spy([Signal("cls_attention"), Signal("keys")], "outside", cls=True)
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.thin([method, None], 0.5)
    wanted = 2 * 17 * 24 * 24 + 2 * 24 * 24 + 2 * 17 * 24  # keys of all, query of CLS, one row of products
    assert [f for s, w, f, _ in p.ledger[0].entries if (s, w) == ("outside", "signals")] == [wanted]
    assert p.ledger[1].by_stage().get("outside", 0) == 0


def test_questions_are_embedded_alike_alone_and_together(host, tiny):
    together, flops = host.text.embed(tiny.questions)
    for row, question in enumerate(tiny.questions):
        ids = torch.tensor([host.text.ids(question)])
        with torch.no_grad():
            wanted = torch.nn.functional.normalize(host.text.model(input_ids=ids).text_embeds[0], dim=-1)
        assert torch.allclose(together[row], wanted, atol=1e-5)
        assert flops[row] == host.text.flops(ids.shape[1])


def test_phrase_similarity_is_the_largest_cosine_with_a_phrase_of_each_kind(host, tiny):
    method, found = spy([Signal("phrase_similarity")], "outside")
    image = tiny.picture(0)
    questions = ["where is the green thing , holding two ?", "is it ?"]
    p = host.open([image, image], questions)
    p.thin(method, 0.5)
    value, text = found["phrase_similarity"], host.text
    assert value.shape == (2, 3, 16)
    for row, question in enumerate(questions):
        listed = parse(question).listed()
        with torch.no_grad():
            vectors = torch.stack([text.model(torch.tensor([text.ids(phrase)])).text_embeds[0] for _, phrase in listed])
            tokens = host.tower.norm_out(p.states["encoder"][row].x) @ text.projection.T
        wanted = phrase_similarity(tokens, vectors, [kind for kind, _ in listed])
        assert torch.allclose(value[row], wanted, atol=1e-5)
    assert value[0].isfinite().all()  # entities, actions and the sentence
    assert value[1, :2].isneginf().all() and value[1, 2].isfinite().all()


@pytest.mark.parametrize("question", ["where is the green thing , holding two ?", "is it ?", ""])
def test_phrases_are_embedded_once_and_paid_for_as_forecast(host, tiny, question):
    p, plan = host.open([[tiny.picture(0), tiny.picture(1)]], [question]), Plan.of(outside=("par", 0.25))
    p.run(plan)
    p.decode(max_new_tokens=2)
    assert p.ledger[0] == host.forecast(plan, p.shapes[0], new_tokens=len(p.generated[0]))
    paid = {what: flops for stage, what, flops, _ in p.ledger[0].entries if stage == "outside"}
    lengths = [len(host.text.ids(phrase)) for _, phrase in parse(question).listed()]
    assert paid["phrase embedding"] == sum(map(host.text.flops, lengths))
    assert paid["signals"] == 2 * host.text.similarity_flops(16, len(lengths))
    unknown = host.forecast(plan, replace(p.shapes[0], phrases=None), new_tokens=len(p.generated[0]))
    assert unknown.total >= p.ledger[0].total  # as if each word were a phrase


def test_par_keeps_what_it_is_asked_for_and_another_question_asks_anew(host, tiny):
    p = host.open([tiny.picture(0)], ["is the thing green ?"])
    p.run(Plan.of(outside=("par", 0.25)))
    assert 1 <= p.tokens[0].n <= 4
    q = p.next_turn(["what is it holding ?"])
    assert q.stop == "encoder" and not q.ask._phrases
    fork = p.fork([0, 0])
    assert set(fork.ask._phrases) == {0, 1}

"""The cache behind the prompt: eviction and merging, held against masks; answers after it."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressors.base import KVReducer, KVReduction
from foveate.compressors.registry import make
from foveate.models.errors import CountMismatch

pytestmark = pytest.mark.fast


@dataclass(frozen=True)
class Evict(KVReducer):
    """Keeps other visual entries in each head: head h keeps those with index % 4 == h."""

    name = "evict"
    stages = ("decode",)

    def plan(self, cache, count):
        b, k, s, _ = cache.keys.shape
        first = int(cache.visual.int().argmax())
        rows = []
        for head in range(k):
            visual = [first + i for i in range(int(cache.visual.sum())) if i % 4 == head]
            rows.append([i for i in range(s) if not cache.visual[i] or i in visual])
        return KVReduction(torch.tensor(rows).expand(b, -1, -1))


@torch.no_grad()
def hidden_from_answers(
    folder, row, start, answer, seen=tuple(lambda i, head=head: i % 4 == head for head in range(2))
):
    """Log-probability of an answer whose tokens cannot see the evicted entries, head by head; nothing is cached."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    lm = model.model.language_model
    ids = row.ids.tolist()
    whole = torch.tensor([[*ids, *answer]])
    processor = AutoProcessor.from_pretrained(folder)
    pixels = processor.image_processor(
        [row.views[0].pixels], do_resize=False, do_center_crop=False, return_tensors="pt"
    )
    embeds = model.get_input_embeddings()(whole)
    embeds[0, start : start + 16] = model.model.get_image_features(
        pixels["pixel_values"], return_dict=True
    ).pooler_output[0]
    s = whole.shape[1]
    allowed = torch.ones(1, 4, s, s, dtype=torch.bool).tril()
    for head in range(4):
        evicted = [start + i for i in range(16) if not seen[head // 2](i)]
        allowed[0, head, len(ids) :, evicted] = False
    mask = torch.zeros(1, 4, s, s).masked_fill(~allowed, torch.finfo(torch.float32).min)
    x, place = embeds, torch.arange(s)[None]
    rotation = lm.rotary_emb(x, position_ids=place)
    for layer in lm.layers:
        x = layer(x, attention_mask=mask, position_ids=place, position_embeddings=rotation)
    logp = model.lm_head(lm.norm(x))[0].log_softmax(-1)
    return sum(logp[len(ids) - 1 + i, t].item() for i, t in enumerate([*answer, 3]))


def test_eviction_equals_hiding_the_entries_from_the_answer(folders, host, tiny):
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.choose_decode(Evict(), 0.25)
    answers = ["green thing two", "red"]
    scores = p.score([[a] for a in answers])
    for row in range(2):
        ids = host.inputs.answer_ids(p.rows[row], answers[row])
        wanted = hidden_from_answers(folders(text_tower=True), p.rows[row], p.rows[row].first[0], ids)
        assert scores[row].logprob[0] == pytest.approx(wanted, abs=1e-4)
    assert p.counts["decode"] == [4, 4]
    assert p.cached[0] == [p.shapes[0].n_text + 4] * 4


def test_generation_after_eviction_agrees_with_the_scores_of_its_own_answer(host, tiny):
    rows = range(8)
    p = host.open([tiny.picture(s) for s in rows], [tiny.questions[s % 4] for s in rows])
    p.prefill(make("prefill", "fastv"), 0.5)
    p.choose_decode(make("decode", "look_m"), [0.5, 0.25, 1.0, 0.75] * 2)
    p.decode(max_new_tokens=6)
    plain = {row: ids for row, ids in enumerate(p.generated) if min(ids) > 4}  # words only: they can be read back
    assert plain
    usual, checked = host.ends, 0
    try:
        for row, ids in plain.items():
            host.ends = frozenset({ids[2]})  # a random model hardly ever ends by itself
            if ids[2] in ids[:2]:
                continue
            answer = " ".join(host.inputs.tokenizer.convert_ids_to_tokens(ids[:2]))
            score = p.score([[answer, "three three"] if r == row else ["red"] for r in rows])[row]
            assert score.greedy == [True, False]
            checked += 1
    finally:
        host.ends = usual
    assert checked


def test_merged_entries_are_the_sums_that_the_method_asked_for(host, tiny):
    @dataclass(frozen=True)
    class Merge(KVReducer):
        name = "merge"
        stages = ("decode",)

        def plan(self, cache, count):
            b, k, s, _ = cache.keys.shape
            first, n = int(cache.visual.int().argmax()), int(cache.visual.sum())
            keep = torch.tensor([i for i in range(s) if not first < i < first + n])
            into = torch.full((s,), -1)
            into[keep] = torch.arange(len(keep))
            into[first + 1 : first + n] = first
            weight = torch.ones(s)
            weight[first : first + n] = 1 / n
            return KVReduction(keep.expand(b, k, -1), into.expand(b, k, -1), weight.expand(b, k, -1))

    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.prefill()
    before = [(c.keys, c.values) for c in p.caches]
    p.choose_decode(Merge(), 1 / 16)
    for (keys, values), cache in zip(before, p.caches, strict=True):
        assert cache.keys.shape[2] == keys.shape[2] - 15
        assert torch.allclose(cache.keys[:, :, 3], keys[:, :, 3:19].mean(2), atol=1e-6)
        assert torch.allclose(cache.values[:, :, 3], values[:, :, 3:19].mean(2), atol=1e-6)
        assert torch.equal(cache.keys[:, :, 4:], keys[:, :, 19:])
        assert torch.equal(cache.keys[:, :, :3], keys[:, :, :3])


@pytest.mark.parametrize("name", ["look_m", "random"])
def test_rows_with_different_caches_do_not_see_each_other(host, tiny, name):
    images = [tiny.picture(s) for s in range(4)]
    method = make("decode", name)
    cuts, keeps = [None, make("prefill", "fastv"), None, make("prefill", "pyramiddrop")], [0.5, 0.25, 1.0, 0.5]
    p = host.open(images, tiny.questions)
    p.prefill(cuts, 0.5)
    texts = p.decode(method, keeps, max_new_tokens=5)
    scores = p.score([["red", "one"]] * 4)
    for row in range(4):
        alone = host.open(images[row : row + 1], tiny.questions[row : row + 1])
        alone.prefill(cuts[row], 0.5)
        assert alone.decode(method, keeps[row], max_new_tokens=5) == [texts[row]]
        assert alone.generated[0] == p.generated[row]
        assert alone.score([["red", "one"]])[0].logprob == pytest.approx(scores[row].logprob, abs=1e-4)
        assert alone.ledger[0] == p.ledger[row]


def test_scoring_leaves_the_cache_as_it_is(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.prefill()
    first = p.score([["red", "green thing"]])
    entries = p.cached
    assert p.score([["red", "green thing"]]) == first
    assert p.cached == entries


@dataclass(frozen=True)
class Ragged(KVReducer):
    """The first head keeps visual entries with index % 4 == 0, the second every odd one: 4 and 8 of 16."""

    name = "ragged"
    stages = ("decode",)

    def budgets(self, n, count, layer, depth, heads, last):
        return (count * 2 // 3, count * 4 // 3)

    def plan(self, cache, count):
        b, _, s, _ = cache.keys.shape
        first = int(cache.visual.int().argmax())
        kept = [[i for i in range(s) if not cache.visual[i] or seen(i - first)] for seen in SEEN]
        longest = max(map(len, kept))
        keep = torch.tensor([row + [-1] * (longest - len(row)) for row in kept])
        return KVReduction(keep.expand(b, -1, -1), count=torch.tensor([list(map(len, kept))]).expand(b, -1))


SEEN = (lambda i: i % 4 == 0, lambda i: i % 2 == 1)


def test_heads_that_keep_different_numbers_equal_hiding_their_entries_from_the_answer(folders, host, tiny):
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.choose_decode(Ragged(), 6 / 16)
    answers = ["green thing two", "red"]
    scores = p.score([[a] for a in answers])
    for row in range(2):
        ids = host.inputs.answer_ids(p.rows[row], answers[row])
        start, text = p.rows[row].first[0], p.shapes[row].n_text
        wanted = hidden_from_answers(folders(text_tower=True), p.rows[row], start, ids, SEEN)
        assert scores[row].logprob[0] == pytest.approx(wanted, abs=1e-4)
        assert p.cached[row] == [(text + 4, text + 8)] * 4
        assert p.ledger[row].tokens["decode"] == 6


def test_memory_of_a_cache_is_what_the_ledger_says_and_the_old_tensors_are_gone(host, tiny):
    cases = ((Evict(), 2 * 4, 4 / 16), (Ragged(), 4 + 8, 6 / 16), (make("decode", "look_m"), 2 * 4, 4 / 16))
    for method, kept, ratio in cases:
        p = host.open([tiny.picture(0), tiny.picture(1)], [tiny.questions[0]] * 2)
        p.prefill()
        text = p.shapes[0].n_text
        a_head = 2 * 4 * 8 * 4  # keys and values of 8 numbers, 4 bytes each, in 4 layers
        before = [weakref.ref(x) for cache in p.caches for x in (cache.keys, cache.values, cache.stream.x)]
        assert sum(cache.bytes for cache in p.caches) == sum(each.kv_bytes_prefill for each in p.ledger)
        assert p.ledger[0].kv_bytes_prefill == a_head * 2 * (text + 16)
        p.choose_decode(method, ratio)
        gc.collect()
        assert sum(cache.bytes for cache in p.caches) == sum(each.kv_bytes_end for each in p.ledger)
        assert p.ledger[0].kv_bytes_end == a_head * (2 * text + kept)
        assert not [ref for ref in before if ref() is not None]


def test_heads_of_unequal_length_fork_and_answer_like_the_rows_that_they_came_from(host, tiny):
    images = [tiny.picture(s) for s in range(3)]
    p = host.open(images, tiny.questions[:3])
    p.choose_decode([Ragged(), None, Evict()], [6 / 16, 1.0, 4 / 16])
    fork = p.fork([2, 0, 0, 1])
    assert p.caches[0].heads is not None and fork.cached == [p.cached[row] for row in (2, 0, 0, 1)]
    p.decode(max_new_tokens=5)
    fork.decode(max_new_tokens=5)
    assert fork.generated == [p.generated[row] for row in (2, 0, 0, 1)]
    assert [fork.ledger[at] for at in range(4)] == [p.ledger[row] for row in (2, 0, 0, 1)]
    for row in range(3):
        alone = host.open([images[row]], [tiny.questions[row]])
        alone.choose_decode((Ragged(), None, Evict())[row], (6 / 16, 1.0, 4 / 16)[row])
        alone.decode(max_new_tokens=5)
        assert alone.generated[0] == p.generated[row] and alone.ledger[0] == p.ledger[row]


def test_a_head_that_keeps_more_than_its_budget_is_refused(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    with pytest.raises(
        CountMismatch, match=r"ragged: kept \[\[4, 8\]\] visual entries; asked for \[5, 10\] in each row"
    ):
        p.choose_decode(Ragged(), 0.5)


def test_a_method_that_evicts_text_is_refused(host, tiny):
    @dataclass(frozen=True)
    class NoText(KVReducer):
        name = "no_text"
        stages = ("decode",)

        def plan(self, cache, count):
            b, k, s, _ = cache.keys.shape
            return KVReduction(torch.arange(1, s - 7).expand(b, k, -1))

    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    with pytest.raises(CountMismatch, match="no_text: kept .* must ascend and hold all"):
        p.choose_decode(NoText(), 0.5)

"""Caches that stay whole and are read in part: held against the untouched model under masks, one token at a time."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fed import one_by_one
from tiny_words import TALK
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from foveate.compressors.base import KVReducer, KVReduction
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal
from foveate.models import load_host
from foveate.models.answers import forced
from foveate.models.behind import Continuation
from foveate.models.errors import CountMismatch, HostError
from foveate.plans.named import load_plan
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast

FED = [9, 17, 6, 6, 21, 12, 6, 9]
LAYER = (2, 4)  # of this model's four layers the last two read in part
GATES = {"every token": 1.0, "now and then": 0.9, "the first alone": -1.0}


def dycoke(gate=0.9, layer=LAYER):
    return make("decode", "dycoke", layer=layer, gate=gate)


def asked(host, tiny, rows):
    return host.open([tiny.picture(s) for s in range(rows)], tiny.questions[:rows])


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def pair(request, folders):
    """A host with one kind of attention, and the untouched model, whose attention can be looked at."""
    folder = folders(text_tower=True)
    host = load_host(folder)
    host.model.set_attn_implementation(request.param)
    return host, AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def slow(model, p, row, fed, first, count, gate):
    """Logits behind the prompt and behind each token fed, (1 + Q, V), and what each of these read.

    Every step runs the whole sequence anew: nothing is cached, tokens of the answer are hidden from what they do not
    read.
    """
    lm, ids, start = model.model.language_model, p.rows[row].ids.tolist(), p.rows[row].first[0]
    image = model.model.get_image_features(p.host.pixels([p.rows[row].views[0]]), return_dict=True).pooler_output[0]
    visual, found, kept, before = list(range(start, start + 16)), [], [], None
    for step in range(len(fed) + 1):
        x = model.get_input_embeddings()(torch.tensor([ids + fed[:step]]))
        x[0, visual] = image
        s, seen = x.shape[1], []
        place = torch.arange(s)[None]
        rotation = lm.rotary_emb(x, position_ids=place)
        hook = lm.layers[first - 1].self_attn.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[1]))
        for layer, block in enumerate(lm.layers):
            if layer == first and step:
                now = seen[0][0].mean(0)[-1, visual]
                if before is not None and torch.dot(now, before) / now.norm() / before.norm() >= gate:
                    kept.append(kept[-1])
                else:
                    kept.append({visual[i] for i in now.argsort(descending=True, stable=True)[:count].tolist()})
                before = now
            allowed = torch.ones(s, s, dtype=torch.bool).tril()
            for number, own in enumerate(kept if layer >= first else []):
                allowed[len(ids) + number, [at for at in visual if at not in own]] = False
            mask = torch.zeros(1, 1, s, s).masked_fill(~allowed, torch.finfo(torch.float32).min)
            x = block(x, attention_mask=mask, position_ids=place, position_embeddings=rotation)
        hook.remove()
        found.append(model.lm_head(lm.norm(x))[0, -1])
    return torch.stack(found), kept


@pytest.mark.parametrize("count", [1, 4, 11])
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_one_token_at_a_time_or_all_at_once_it_is_the_model_that_sees_what_was_chosen(pair, tiny, gate, count):
    host, model = pair
    p = asked(host, tiny, 3)
    p.choose_decode(dycoke(gate), count / 16)
    fed = [FED[row:] + FED[:row] for row in range(3)]
    single, whole = one_by_one(p, [0, 1, 2], fed), forced(p, torch.arange(3), torch.tensor(fed))
    for row in range(3):
        wanted, kept = slow(model, p, row, fed[row], 2, count, gate)
        assert torch.allclose(single[row], wanted, atol=1e-5) and torch.allclose(whole[row], wanted, atol=1e-5)
        changes = sum(one != other for one, other in zip(kept, kept[1:], strict=False))
        assert (changes == 0) == (gate == -1.0) or count == 1
        assert not torch.allclose(single[row], slow(model, p, row, fed[row], 2, 16, gate)[0], atol=1e-3)


def test_keeping_everything_is_the_baseline_bit_for_bit(host, tiny):
    whole, plain = asked(host, tiny, 2), asked(host, tiny, 2)
    whole.choose_decode(dycoke(), 1.0)
    plain.choose_decode(None)
    fed = torch.tensor([FED, FED])
    assert torch.equal(forced(whole, torch.arange(2), fed), forced(plain, torch.arange(2), fed))
    whole.decode(max_new_tokens=6)
    plain.decode(max_new_tokens=6)
    assert whole.generated == plain.generated and whole.ledger == plain.ledger


@pytest.fixture
def watched(host, monkeypatch):
    """Entries that each layer's attention is given for each token fed, (layer, one number for each row)."""
    found = []

    def watch(layer, block):
        forward = block.forward

        def seen(x, **given):
            if x.shape[1] == 1:
                found.append((layer, given["attention_mask"].bool().sum(-1).flatten().tolist()))
            return forward(x, **given)

        monkeypatch.setattr(block, "forward", seen)

    for layer, block in enumerate(host.decoder.layers):
        watch(layer, block)
    return found


def test_at_the_least_ratio_later_layers_see_one_visual_token_and_earlier_ones_all(host, tiny, watched):
    p = asked(host, tiny, 1)
    p.choose_decode(dycoke(), 1 / 1000)
    p.decode(max_new_tokens=3)
    words = p.shapes[0].n_text
    steps = [[words + 16 + fed, words + 16 + fed, words + 1 + fed, words + 1 + fed] for fed in (1, 2)]
    assert [n for _, [n] in watched] == [n for step in steps for n in step]
    assert p.counts["decode_layers"] == [[16, 16, 1, 1]] and p.counts["decode"] == [1]


CALLS = []


@dataclass(frozen=True)
class Counted(KVReducer):
    """Reads the visual entries that come first, whatever the attention; tells `CALLS` when it is asked."""

    name = "counted"
    stages = ("decode",)
    kinds = frozenset({"answer_attention"})
    reselects = True
    stable: bool = True

    def signals(self, depth):
        return frozenset({Signal("answer_attention", 1)})

    def budgets(self, n, count, layer, depth, heads, last):
        return (n if layer < 2 else count,) * heads

    def stands(self, now, before):
        return torch.full((len(now),), self.stable)

    def plan(self, cache, count):
        CALLS.append((cache.layer, cache.keys.shape[0]))
        text, at = (~cache.visual).nonzero()[:, 0], cache.visual.nonzero()[:, 0]
        return KVReduction(torch.cat([text, at[:count]]).sort().values.expand(cache.keys.shape[0], 1, -1))


@pytest.mark.parametrize("stable", [True, False])
def test_a_stable_token_is_not_asked_about_and_one_choice_serves_all_layers(host, tiny, stable):
    CALLS.clear()
    p = asked(host, tiny, 1)
    p.choose_decode(Counted(stable=stable), 0.5)
    one_by_one(p, [0], [FED[:4]])
    assert CALLS == [(2, 1)] * (1 if stable else 4)
    CALLS.clear()
    forced(p, torch.tensor([0]), torch.tensor([FED[:4]]))
    assert CALLS == [(2, 1 if stable else 4)]


def test_layers_that_prefill_cut_read_their_share_of_what_they_have(host, tiny):
    p = asked(host, tiny, 2)
    p.prefill(make("prefill", "pyramiddrop"), 0.25)
    layers = p.counts["layers"][0]
    assert len(set(layers)) > 1
    p.choose_decode(dycoke(layer=(1, 4)), 0.5)
    assert p.counts["decode_layers"] == [[layers[0], *(round(n / 2) for n in layers[1:])]] * 2
    fed = [FED, FED[::-1]]
    assert torch.allclose(one_by_one(p, [0, 1], fed), forced(p, torch.arange(2), torch.tensor(fed)), atol=1e-5)
    reads = p.caches[-1].reads
    assert bool((reads.source[reads.visual] >= 0).all()) and reads.visual.sum(1).tolist() == [layers[-1]] * 2


@pytest.mark.parametrize("name", ["p_mod", "saint", "glimpse_prune", "pact", "adatp"])
def test_behind_any_prefill_method_tokens_fed_together_are_as_one_by_one(fresh, tiny, name):
    from foveate.compressors.learned import untrained

    method = make("prefill", name)
    if method.learned:
        method = untrained(method, fresh.widths, fresh.matrices())
    p = asked(fresh, tiny, 2)
    p.prefill(method, 0.5)
    p.choose_decode(dycoke(layer=(3, 4)), 0.5)
    fed = [FED, FED[::-1]]
    assert torch.allclose(one_by_one(p, [0, 1], fed), forced(p, torch.arange(2), torch.tensor(fed)), atol=1e-5)


def test_greedy_answers_are_those_that_scores_call_greedy(host, tiny):
    rows = range(12)
    p = host.open([tiny.picture(s) for s in rows], [tiny.questions[s % 4] for s in rows])
    p.choose_decode(dycoke(), [0.25, 0.1, 1.0, 0.5] * 3)
    p.decode(max_new_tokens=6)
    said = torch.tensor([ids for ids in p.generated if len(ids) == 6])
    full = [row for row, ids in enumerate(p.generated) if len(ids) == 6]
    assert torch.equal(forced(p, torch.tensor(full), said[:, :-1]).argmax(-1), said)
    usual, checked = host.ends, 0
    try:
        for row, ids in enumerate(p.generated):
            if len(ids) < 4 or min(ids[:3]) <= 4 or ids[3] in ids[:3]:
                continue  # words only: they can be read back
            host.ends = frozenset({ids[3]})  # a random model hardly ever ends by itself
            answer = " ".join(host.inputs.tokenizer.convert_ids_to_tokens(ids[:3]))
            score = p.score([[answer, "three three"] if r == row else ["red"] for r in rows])[row]
            assert score.greedy == [True, False]
            checked += 1
    finally:
        host.ends = usual
    assert checked


def test_a_row_ignores_its_batch_mates_whatever_acts_on_them(host, tiny):
    images = [tiny.picture(s) for s in range(5)]
    questions = [*tiny.questions[:4], tiny.questions[0]]
    methods = [dycoke(), make("decode", "look_m"), None, dycoke(0.5, (1, 4)), dycoke()]
    keeps = [0.25, 0.5, 1.0, 0.5, 0.1]
    p = host.open(images, questions)
    p.choose_decode(methods, keeps)
    scores = p.score([["red", "green thing two"]] * 5)
    p.decode(max_new_tokens=6)
    for row in range(5):
        alone = host.open(images[row : row + 1], questions[row : row + 1])
        alone.choose_decode(methods[row], keeps[row])
        assert alone.score([["red", "green thing two"]])[0].logprob == pytest.approx(scores[row].logprob, abs=1e-4)
        alone.decode(max_new_tokens=6)
        assert alone.generated[0] == p.generated[row] and alone.ledger[0] == p.ledger[row]
    fork = p.fork([3, 0, 3])
    fork.decode(max_new_tokens=6)
    assert fork.generated == [p.generated[row] for row in (3, 0, 3)]


def test_rows_that_change_places_take_what_they_read_with_them(host, tiny):
    p = asked(host, tiny, 3)
    p.choose_decode([dycoke(), dycoke(-1.0), None], [0.25, 0.1, 1.0])
    run, moved = (Continuation(host.decoder, p.caches, torch.arange(3)) for _ in range(2))
    order = torch.tensor([2, 0, 0])
    for step, token in enumerate(FED[:6]):
        if step == 3:
            moved.reorder(order)
        x, other = run.feed(torch.full((3, 1), token)), moved.feed(torch.full((3, 1), token))
        assert torch.allclose(x if step < 3 else x[order], other, atol=1e-5)


def test_a_later_question_reads_everything_and_its_answer_chooses_again(tiny, tmp_path):
    host = load_host(tiny.build(tmp_path, chat=TALK))
    p = asked(host, tiny, 2)
    p.choose_decode(dycoke(), 0.25)
    plain = asked(host, tiny, 2)
    plain.choose_decode(None)
    later, whole = (each.follow(["left ?", "is this green ?"], ["red", "the left one"]) for each in (p, plain))
    assert torch.equal(later.logits, whole.logits) and later.cached == whole.cached
    fed = [FED, FED[::-1]]
    single = one_by_one(later, [0, 1], fed)
    assert torch.allclose(single, forced(later, torch.arange(2), torch.tensor(fed)), atol=1e-5)
    assert not torch.allclose(single, one_by_one(whole, [0, 1], fed), atol=1e-3)
    alone = later.fork([1])
    assert alone.decode(max_new_tokens=4) == [later.decode(max_new_tokens=4)[1]]


def test_no_byte_is_freed_and_the_answer_is_charged_for_what_it_reads(fresh, tiny):
    host = fresh
    host.model.set_attn_implementation("eager")  # which torch counts
    p, plain, plan = asked(host, tiny, 1), asked(host, tiny, 1), Plan.of(decode=("dycoke", 0.25))
    for each, by in ((p, plan), (plain, Plan.of())):
        each.run(by)
        before = each.ledger[0].matrix_total
        with FlopCounterMode(display=False) as counter:
            each.decode(max_new_tokens=5)
        assert each.ledger[0].matrix_total - before == pytest.approx(counter.get_total_flops(), rel=1e-9)
        assert len(each.generated[0]) == 5 and host.forecast(by, each.shapes[0], new_tokens=5) == each.ledger[0]
    assert p.cached == plain.cached and p.ledger[0].kv_bytes_end == plain.ledger[0].kv_bytes_end
    assert p.ledger[0].kv_bytes_prefill == plain.ledger[0].kv_bytes_prefill
    decoder, entries = host.shape.decoder, p.cached[0][0]
    spared = 4 * 4 * decoder.query_width * 3 * 12  # 4 tokens, 3 layers, 12 entries less each
    signals = sum(2 * decoder.query_width * (decoder.dim + entries + fed) for fed in (1, 2, 3, 4))
    of = [each.ledger[0].by_stage("matrix")["answer"] for each in (p, plain)]
    assert of[0] == of[1] - spared + signals
    before = p.ledger[0].by_stage().get("score", 0)
    with FlopCounterMode(display=False) as counter:
        p.score([["green thing two"]])
    assert before == 0 and p.ledger[0].by_stage("matrix")["score"] == counter.get_total_flops()


def test_the_named_plan_thins_a_video_and_what_is_read_of_it(host, tiny):
    plan = load_plan("dycoke")
    films = [np.stack([tiny.picture(4 * row + i) for i in range(4)]) for row in range(2)]
    p = host.open(films, tiny.questions[:2]).run(plan)
    assert p.counts["projector"] == [30, 30] and p.counts["decode_layers"] == [[30, 9, 9, 9]] * 2
    p.decode(max_new_tokens=4)
    for row in range(2):
        alone = host.open(films[row : row + 1], tiny.questions[row : row + 1]).run(plan)
        alone.decode(max_new_tokens=4)
        assert alone.generated[0] == p.generated[row]
        assert alone.ledger[0] == p.ledger[row]
        assert host.forecast(plan, p.shapes[row], new_tokens=len(p.generated[row])) == p.ledger[row]


def test_layers_on_the_disk_are_looked_at_as_layers_in_memory(folders, tiny):
    parts = ["vision_tower", "multi_modal_projector", *(f"language_model.{n}" for n in ("embed_tokens", "norm"))]
    parts += ["language_model.rotary_emb", "language_model.layers.0", "language_model.layers.2"]
    device = {**{f"model.{part}": "cpu" for part in parts}, "lm_head": "cpu"}
    device |= {f"model.language_model.layers.{i}": "disk" for i in (1, 3)}
    found = []
    for host in (load_host(folders()), load_host(folders(), device=device)):
        p = asked(host, tiny, 2)
        p.choose_decode(dycoke(), 0.25)
        found.append(one_by_one(p, [0, 1], [FED, FED[::-1]]))
    assert torch.equal(*found)


def test_a_method_that_breaks_the_contract_is_refused(host, tiny):
    class TooEarly(Counted):
        def budgets(self, n, count, layer, depth, heads, last):
            return (count,) * heads

    class Other(Counted):
        def signals(self, depth):
            return frozenset({Signal("recent_attention", 1)})

    class TooMany(Counted):
        def plan(self, cache, count):
            return KVReduction(torch.arange(len(cache.visual)).expand(len(cache.keys), 1, -1))

    with pytest.raises(HostError, match="counted: thins layer 0, and looks at layer 1"):
        asked(host, tiny, 1).choose_decode(TooEarly(), 0.5)
    with pytest.raises(HostError, match="counted: reselects by answer_attention of one layer, and asks for"):
        asked(host, tiny, 1).choose_decode(Other(), 0.5)
    p = asked(host, tiny, 1)
    p.choose_decode(TooMany(), 0.5)
    with pytest.raises(CountMismatch, match=r"counted: kept \[\[16\]\] visual entries; asked for \[8\] in each row"):
        p.decode(max_new_tokens=3)

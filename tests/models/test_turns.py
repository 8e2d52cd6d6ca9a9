"""Conversations over one cache: uncompressed, the untouched model on all turns; compressed, the masked one."""

from dataclasses import dataclass

import masked
import pytest
import torch
from processed import hf_talks
from tiny_words import TALK
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressors.base import KVReducer, KVReduction
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.behind import Continuation
from foveate.models.errors import BadInput, WrongStop
from foveate.plans.plan import UNCOMPRESSED

pytestmark = pytest.mark.fast

NEXT = ["red or blue ?", "is there one thing or two ?", "right ?", "what is the colour ?"]
THIRD = ["left ?", "what ?", "is this green ?", "two or three ?"]


@pytest.fixture(scope="module", params=[TALK, None], ids=["template", "plain"])
def pair(request, tiny, tmp_path_factory):
    """A host that can hold conversations, the untouched model, and its processor."""
    folder = tiny.build(tmp_path_factory.mktemp("talk"), chat=TALK, text_tower=True)
    host, processor = load_host(folder), AutoProcessor.from_pretrained(folder)
    if request.param is None:
        host.inputs.processor.chat_template = None
        processor.chat_template = PlainTemplate.TEXT
    return host, AutoModelForImageTextToText.from_pretrained(folder), processor


class PlainTemplate:
    """What is written where a processor has no template, as a template."""

    TEXT = (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} ASSISTANT:"
        "{% else %} {{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    )


def begun(host, tiny, rows, prefill=None, keep=0.5):
    p = host.open([tiny.picture(s) for s in range(rows)], tiny.questions[:rows])
    p.prefill(prefill and make("prefill", prefill), keep if prefill else 1.0)
    return p


@pytest.mark.parametrize("rows", [1, 4], ids=["single", "padded"])
def test_without_compression_every_turn_is_the_models_own_on_the_whole_conversation(pair, tiny, rows):
    host, model, processor = pair
    p, images = begun(host, tiny, rows), [tiny.picture(s) for s in range(rows)]
    said, seen = [[q] for q in tiny.questions[:rows]], set()
    for questions in (None, NEXT, THIRD):
        if questions is not None:
            p = p.follow(questions[:rows])
            for row in range(rows):
                said[row].append(questions[row])
        inputs = hf_talks(processor, images, said)
        for row, mask, ids in zip(p.rows, inputs["attention_mask"], inputs["input_ids"], strict=True):
            assert row.ids.tolist() == ids[mask.bool()].tolist()
        wanted = model.generate(**inputs, do_sample=False, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :].tolist()
        texts = p.decode(max_new_tokens=6)
        assert p.generated == [w[: len(own)] for own, w in zip(p.generated, wanted, strict=True)]
        for row, text in enumerate(texts):
            said[row].append(text)
            seen.add(text)
    assert len(seen) > 1


@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
@pytest.mark.parametrize("name", ["fastv", "feather", "random", "prunevid"])
def test_a_turn_behind_a_compressed_prompt_is_the_model_that_never_sees_what_was_dropped(pair, tiny, name, rows):
    host, model, processor = pair
    p = begun(host, tiny, rows, name)
    replies = ["red", "the left one", "two"][:rows]
    later = p.follow(NEXT[:rows], replies)
    talks = zip(tiny.questions, replies, NEXT, strict=False)
    inputs = hf_talks(processor, [tiny.picture(s) for s in range(rows)], list(talks))
    assert torch.allclose(later.logits, masked.masked_logits(model, p, inputs), atol=1e-5)
    fresh = [len(new.ids) - len(old.ids) for new, old in zip(later.rows, p.rows, strict=True)]
    assert later.cached == [[n + more for n in layers] for layers, more in zip(p.cached, fresh, strict=True)]


@dataclass(frozen=True)
class Ragged(KVReducer):
    """Head 0 keeps half of what head 1 keeps, from the front."""

    name = "ragged"
    stages = ("decode",)

    def budgets(self, n, count, layer, depth, heads, last):
        return tuple(count * (head + 1) // heads for head in range(heads))

    def plan(self, cache, count):
        b, k, s, _ = cache.keys.shape
        text, at = (~cache.visual).nonzero()[:, 0], cache.visual.nonzero()[:, 0]
        budgets = self.budgets(len(at), count, cache.layer, 4, k, len(at))
        keep = torch.full((b, k, len(text) + max(budgets)), -1)
        number = torch.tensor([len(text) + budget for budget in budgets])
        for head, budget in enumerate(budgets):
            keep[:, head, : len(text) + budget] = torch.cat([text, at[:budget]]).sort().values
        return KVReduction(keep, count=number.expand(b, -1))


@pytest.mark.parametrize("how", ["ragged", "merged", "two stages"])
def test_rows_of_different_lengths_go_on_as_token_by_token_and_alone(host, tiny, pair, how):
    host = pair[0]
    p = begun(host, tiny, 3, {"two stages": "fastv"}.get(how))
    p.choose_decode(make("decode", "look_m") if how == "merged" else Ragged(), 0.5)
    replies = ["red", "the left one", "two three"]
    later = p.follow(NEXT[:3], replies)
    ledgers, scores = [ledger.copy() for ledger in later.ledger], later.score([["red"]] * 3)
    for row in range(3):
        new = later.rows[row].ids[len(p.rows[row].ids) :].tolist()
        run = Continuation(host.decoder, p.caches, torch.tensor([row]))
        for token in new:
            x = run.feed(torch.tensor([[token]]))
        assert torch.allclose(later.logits[row], host.decoder.logits(x[0, -1]), atol=1e-5)
        alone = p.fork([row]).follow([NEXT[row]], [replies[row]])
        assert alone.ledger[0] == ledgers[row] and alone.cached[0] == later.cached[row]
        assert alone.decode(max_new_tokens=5) == [later.fork([row]).decode(max_new_tokens=5)[0]]
        assert alone.score([["red"]])[0].logprob == pytest.approx(scores[row].logprob, abs=1e-4)


def test_beams_and_further_turns_go_behind_a_turn(host, tiny, pair):
    host = pair[0]
    p = begun(host, tiny, 2, "fastv").follow(NEXT[:2], ["red", "blue"])
    assert p.decode(max_new_tokens=4, num_beams=2) and len(p.follow(THIRD[:2]).decode(max_new_tokens=4)) == 2


def test_the_pass_before_stays_as_it_is_and_its_costs_are_carried_on(host, tiny, pair):
    host = pair[0]
    p = begun(host, tiny, 2, "fastv")
    p.decode(max_new_tokens=4)
    logits, cached, ledgers = p.logits.clone(), p.cached, [ledger.copy() for ledger in p.ledger]
    later = p.follow(NEXT[:2])
    assert torch.equal(p.logits, logits) and p.cached == cached and p.ledger == ledgers
    for before, after in zip(ledgers, later.ledger, strict=True):
        more = after.total - before.total
        assert 0 < more and after.by_stage()["encoder"] == before.by_stage()["encoder"]
        whole = host.forecast(UNCOMPRESSED, later.rows[later.ledger.index(after)].shape).total
        assert more < whole / 2
    with pytest.raises(WrongStop, match="decode"):
        later.choose_decode(make("decode", "look_m"), 0.5)


def test_what_cannot_be_gone_on_with_is_refused(host, tiny, pair):
    p = begun(pair[0], tiny, 2)
    with pytest.raises(BadInput, match="0 answers have been generated for 2 rows"):
        p.follow(NEXT[:2])
    with pytest.raises(BadInput, match="1 questions and 2 replies for 2 rows"):
        p.follow(NEXT[:1], ["red", "red"])
    with pytest.raises(BadInput, match="question 1: contains the token '<image>'"):
        p.follow(["left ?", "<image> ?"], ["red", "red"])
    with pytest.raises(BadInput, match="reply 0: needs a string, got int"):
        p.follow(NEXT[:2], [3, "red"])
    broken = begun(host, tiny, 1)  # its template glues the second turn to the first
    with pytest.raises(BadInput, match="do not begin with those that have run"):
        broken.follow(["left ?"], ["red"])

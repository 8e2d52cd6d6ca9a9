"""Visual tokens in windows: Video-XL in tiny hosts, held against a twin that runs one entry after another."""

import numpy as np
import pytest
import torch
import windowed
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.errors import HostError
from foveate.models.windows import Windows
from foveate.plans.cost import decoder_block, lm_head
from foveate.plans.plan import UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast

FRAMES = 6  # of 16 tokens: windows of 64 and 32


def film(tiny, first=0, t=FRAMES):
    return np.stack([tiny.picture(first + i) for i in range(t)])


def embedded(p, row=0):
    """A row's words before, visual tokens, words behind: (n, D) each."""
    record, embed = p.rows[row], p.host.decoder.embed
    first, n = record.first[0], p.states["projector"][row].n
    ids = torch.from_numpy(record.ids)
    return embed(ids[:first]), p.states["projector"][row].x, embed(ids[first + n :])


@pytest.fixture(scope="module", params=["llama", "qwen2", "mistral"])
def pair(request, folders):
    """A host and Hugging Face's model of the same folder."""
    folder = folders(decoder=request.param)
    return load_host(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("ratio", [2, 16])
@pytest.mark.parametrize("published", [False, True], ids=["means", "published"])
@torch.no_grad()
def test_windows_are_what_one_entry_after_another_gives(pair, tiny, published, ratio, attention):
    host, model = pair
    host.model.set_attn_implementation(attention)
    method = windowed.video_xl(host, published=published)
    p = host.open([film(tiny)], tiny.questions[:1])
    p.prefill(method, 1 / ratio)
    before, visual, behind = embedded(p)
    logits, memory = windowed.twin(model, method, before, visual, behind, [(64, ratio), (32, ratio)], 3)
    assert torch.allclose(p.logits[0], logits[-1], atol=1e-4)
    for layer, cache in enumerate(p.caches):
        keys = torch.stack([k for k, _ in memory[layer]], dim=1)  # (K, S, e)
        turned = host.decoder.turned(keys[None], torch.arange(keys.shape[1])[None, :, None])
        assert torch.allclose(cache.keys, turned, atol=1e-4)
        assert torch.allclose(cache.values[0], torch.stack([v for _, v in memory[layer]], dim=1), atol=1e-4)
    words = len(p.rows[0].text)
    assert p.cached == [[words + 96 // ratio] * 4] and p.counts["layers"] == [[96 // ratio] * 4]
    assert [int(cache.next_place[0]) for cache in p.caches] == [words + 96 // ratio] * 4


@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
def test_an_answer_goes_on_behind_words_and_summary_tokens(folders, tiny, rows):
    folder = folders(text_tower=True)
    host, model = load_host(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
    method, answer = windowed.video_xl(host, seed=1), "green thing two"
    p = host.open([film(tiny, s) for s in range(rows)], tiny.questions[:rows])
    p.prefill(method, 0.25)
    scores = p.score([[answer]] * rows)
    for row in range(rows):
        before, visual, behind = embedded(p, row)
        ids = host.inputs.answer_ids(p.rows[row], answer)
        with torch.no_grad():
            behind = torch.cat([behind, host.decoder.embed(torch.tensor(ids))])
        logits, _ = windowed.twin(model, method, before, visual, behind, [(64, 4), (32, 4)], 3)
        logp = logits[-1 - len(ids) :].log_softmax(-1)
        wanted = sum(float(logp[i, token]) for i, token in enumerate([*ids, 3]))
        assert scores[row].logprob[0] == pytest.approx(wanted, abs=1e-3)


@torch.no_grad()
def test_windows_of_unlike_ratios_follow_each_other(pair, tiny):
    host, model = pair
    method = windowed.video_xl(host)
    p = host.open([film(tiny)], tiny.questions[:1])
    p.project()
    before, visual, behind = embedded(p)
    run = Windows(host.decoder, method, host.decoder.embed(torch.tensor([3]))[0], 1)
    run.words(before[None])
    for start, tokens, ratio in ((0, 32, 8), (32, 48, 2), (80, 16, 4)):
        run.window(visual[None, start : start + tokens], list(range(ratio - 1, tokens, ratio)))
    assert run.kept == len(before) + 32 // 8 + 48 // 2 + 16 // 4
    run.words(behind[None])
    logits, _ = windowed.twin(model, method, before, visual, behind, [(32, 8), (48, 2), (16, 4)], 3)
    assert torch.allclose(host.decoder.logits(run.last[0]), logits, atol=1e-4)


@torch.no_grad()
def test_copies_at_a_ratio_of_one_keep_as_many_entries_as_there_are_tokens(host, tiny):
    method = untrained(make("prefill", "video_xl"), host.widths)
    p = host.open([film(tiny)], tiny.questions[:1])
    p.project()
    before, visual, behind = embedded(p)
    run = Windows(host.decoder, method, host.decoder.embed(torch.tensor([3]))[0], 1)
    run.words(before[None])
    run.window(visual[None], list(range(96)))
    assert [cache.keys.shape[2] - len(before) for cache in run.caches] == [96] * 4
    assert [int(cache.n[0]) for cache in run.caches] == [96] * 4


@torch.no_grad()
def test_words_alone_give_the_models_own_logits(host, tiny):
    method = windowed.video_xl(host)
    p, plain = (host.open([film(tiny)], tiny.questions[:1]) for _ in range(2))
    for each, compressor, keep in ((p, method, 0.25), (plain, None, 1.0)):
        each.blind()
        each.prefill(compressor, keep)
    assert torch.equal(p.logits, plain.logits) and p.ledger[0] == plain.ledger[0]
    whole = host.open([film(tiny)], tiny.questions[:1])
    whole.prefill(method, 1.0)  # a ratio of one is no method
    untouched = host.open([film(tiny)], tiny.questions[:1])
    untouched.prefill()
    assert torch.equal(whole.logits, untouched.logits)


def test_rows_of_a_batch_do_not_see_each_other(host, tiny):
    methods = [
        windowed.video_xl(host),
        None,
        make("prefill", "pact"),
        windowed.video_xl(host),
        make("prefill", "fastv"),
    ]
    keeps, questions = [0.25, 1.0, 0.5, 0.125, 0.25], [*tiny.questions[:4], tiny.questions[0]]
    images = [film(tiny, s, t) for s, t in enumerate((6, 4, 6, 2, 6))]
    said = [["red"], ["one"], ["left thing"], ["blue two"], ["red"]]
    for peeked in (False, True):
        p = host.open(images, questions)
        if peeked:
            p.peek()
        p.prefill(methods, keeps)
        together = p.score(said)
        for row in range(5):
            alone = host.open(images[row : row + 1], questions[row : row + 1])
            if peeked:
                alone.peek()
            alone.prefill(methods[row], keeps[row])
            assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
            assert alone.counts["layers"][0] == p.counts["layers"][row] and alone.cached[0] == p.cached[row]
            assert alone.ledger[0].total == sum(f for s, _, f, _ in p.ledger[row].entries if s != "score")
            (score,) = alone.score([said[row]])
            assert score.logprob == pytest.approx(together[row].logprob, abs=1e-4)


def taught(host):
    """The host with fresh weights for Video-XL."""
    host.learned["prefill", "video_xl"] = windowed.video_xl(host).network
    return host


@pytest.mark.parametrize("t", [1, 3, 6])
@pytest.mark.parametrize("settings", [{"text_tower": True}, {"tower": "siglip", "decoder": "qwen2"}], ids=str)
def test_costs_are_known_before_and_are_those_that_torch_counts(folders, tiny, settings, t):
    host = taught(load_host(folders(**settings)))
    host.model.set_attn_implementation("eager")
    plan, shown = Plan.of(prefill=("video_xl", 0.25)), film(tiny, t=t) if t > 1 else tiny.picture(0)
    p = host.open([shown], [tiny.questions[1]])
    with FlopCounterMode(display=False) as counter:
        p.run(plan)
        p.decode(max_new_tokens=4)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert host.forecast(plan, p.shapes[0], new_tokens=len(p.generated[0])) == p.ledger[0]
    text = len(p.rows[0].ids) - 16 * t
    each = 2 * 4 * host.decoder.kv_heads * host.decoder.head_dim * 4  # keys and values, 4 layers, 4 bytes
    assert p.ledger[0].kv_bytes_prefill == each * (text + 4 * t)


def test_a_window_sees_what_stays_and_itself_and_is_paid_for_as_such(fresh, tiny):
    host, plan = taught(fresh), Plan.of(prefill=("video_xl", 0.125))
    p = host.open([film(tiny)], tiny.questions[:1]).run(plan)
    shape, words = host.shape.decoder, len(p.rows[0].text)
    before = int(p.rows[0].first[0])
    calls = [(before, 0), (64 + 8, before), (32 + 4, before + 8), (words - before, before + 12)]
    layers = 4 * sum(decoder_block(shape, fed, kept) for fed, kept in calls)
    added = 4 * 2 * 12 * 16 * (3 * 32 + 32 + 16 + 16)
    assert p.ledger[0].by_stage("matrix")["prefill"] == layers + added + lm_head(shape, 1)
    assert p.ledger[0].kv_bytes_prefill == sum(cache.bytes for cache in p.caches)


def test_attention_in_windows_costs_less_than_over_all_of_a_long_video(fresh, tiny):
    host = taught(fresh)
    shape = host.open([film(tiny, t=64)], tiny.questions[:1]).shapes[0]
    one, whole = (host.forecast(plan, shape) for plan in (Plan.of(prefill=("video_xl", 1 / 16)), UNCOMPRESSED))
    assert one.by_stage()["prefill"] < 0.5 * whole.by_stage()["prefill"]
    assert one.kv_bytes_prefill < 0.1 * whole.kv_bytes_prefill


def test_words_between_visual_tokens_are_refused_before_anything_runs(fresh, tiny):
    host, plan = taught(fresh), Plan.of(prefill=("video_xl", 0.25))
    p = host.open([[tiny.picture(0), tiny.picture(1)]], tiny.questions[:1])
    if p.shapes[0].before is None:
        with pytest.raises(HostError, match="windows need visual tokens that stand together"):
            host.forecast(plan, p.shapes[0])
        with pytest.raises(HostError, match="row 0: windows need visual tokens that stand together"):
            p.run(plan)
    else:
        assert host.forecast(plan, p.shapes[0], 0) == p.run(plan).ledger[0]


FEWER = [("projector", "average_pool", 0.25), ("outside", "stride", 0.3), ("input", "frames", 0.5)]


@pytest.mark.parametrize(("stage", "name", "keep"), FEWER)
def test_what_has_been_made_fewer_runs_in_windows_of_as_many_frames(fresh, tiny, stage, name, keep):
    host, plan = taught(fresh), Plan.of(**{stage: (name, keep), "prefill": ("video_xl", 0.5)})
    p = host.open([film(tiny, t=12)], tiny.questions[:1]).run(plan)
    assert p.counts["prefill"] == [round(192 * keep / 2)]
    assert host.forecast(plan, p.shapes[0]) == p.ledger[0]


def test_the_cache_can_be_shrunk_by_what_reads_nothing_of_the_prompt(fresh, tiny):
    host = taught(fresh)
    p = host.open([film(tiny), film(tiny, 3)], tiny.questions[:2])
    plan = Plan.of(prefill=("video_xl", 0.25), decode=("random", 0.5))
    p.run(plan)
    assert [row[0] for row in p.cached] == [len(row.text) + 12 for row in p.rows]
    assert [host.forecast(plan, shape) for shape in p.shapes] == p.ledger
    assert len(p.decode(max_new_tokens=2)) == 2
    reads = Plan.of(prefill=("video_xl", 0.25), decode=("look_m", 0.5))
    with pytest.raises(HostError, match="look_m: reads accumulated_attention of the prompt"):
        host.forecast(reads, p.shapes[0])
    with pytest.raises(HostError, match="look_m: reads accumulated_attention of the prompt"):
        host.open([film(tiny)], tiny.questions[:1]).run(reads)


def test_a_conversation_goes_on_and_another_question_runs_the_windows_anew(fresh, tiny):
    host = taught(fresh)
    host.inputs.processor.chat_template = None  # which could not hold a conversation
    p = host.open([film(tiny)], tiny.questions[:1])
    p.prefill(host.make("prefill", "video_xl"), 0.25)
    p.decode(max_new_tokens=2)
    turn = p.follow([tiny.questions[1]], ["red"])
    new = len(turn.rows[0].ids) - len(p.rows[0].ids)
    assert turn.cached == [[entries + new for entries in p.cached[0]]] and turn.decode(max_new_tokens=2)
    again = p.next_turn([tiny.questions[1]])
    again.prefill(host.make("prefill", "video_xl"), 0.25)
    fresh_pass = host.open([film(tiny)], [tiny.questions[1]])
    fresh_pass.prefill(host.make("prefill", "video_xl"), 0.25)
    assert torch.allclose(again.logits, fresh_pass.logits, atol=1e-5)


def test_the_model_is_as_before_when_a_window_breaks(fresh, tiny, monkeypatch):
    host = taught(fresh)
    broken = host.make("prefill", "video_xl")
    monkeypatch.setattr(type(broken), "added", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        host.open([film(tiny)], tiny.questions[:1]).prefill(broken, 0.25)
    assert not any(module._forward_hooks for module in host.model.modules())

"""Videos that run through the decoder as they come: the pass over all, in memory that summary tokens alone fill."""

import numpy as np
import pytest
import torch
import windowed
from live import array_peak, tensor_peak
from torch.utils.flop_counter import FlopCounterMode

from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.errors import BadInput, HostError
from foveate.models.windows import Windows, spans
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast


@pytest.fixture
def film(tiny):
    """film(t): frames one by one, each made when it is asked for."""
    return lambda t: (tiny.picture(i) for i in range(t))


@pytest.mark.parametrize("settings", [{"text_tower": True}, {"tower": "siglip", "decoder": "qwen2"}], ids=str)
@pytest.mark.parametrize(("window", "ratio"), [(1, 4), (3, 16), (5, 2), (16, 8)])
def test_windows_fed_one_at_a_time_are_one_call(folders, film, tiny, settings, window, ratio):
    host = load_host(folders(**settings), dtype="float64")  # what a tower rounds is not what is compared
    method = windowed.video_xl(host)
    p = host.stream(film(11), tiny.questions[0], method, 1 / ratio, window=window)
    q = host.open([np.stack(list(film(11)))], [tiny.questions[0]])
    q.prefill(method, 1 / ratio)
    assert torch.allclose(p.logits, q.logits, atol=1e-5) and p.stop == q.stop == "prefill"
    for mine, theirs in zip(p.caches, q.caches, strict=True):
        assert torch.allclose(mine.keys, theirs.keys, atol=1e-5)
        assert torch.allclose(mine.values, theirs.values, atol=1e-5)
        for name in ("visual", "position", "size", "place", "next_place"):
            kept = mine.stream.visual if name in ("position", "size") else ...
            assert torch.equal(getattr(mine.stream, name)[kept], getattr(theirs.stream, name)[kept]), name
    assert p.counts["projector"] == [176] and p.counts["layers"] == [[176 // ratio] * 4] and p.cached == q.cached
    assert p.ledger[0].by_stage("matrix")["prefill"] == q.ledger[0].by_stage("matrix")["prefill"]
    assert p.ledger[0].kv_bytes_prefill == q.ledger[0].kv_bytes_prefill
    assert p.decode(max_new_tokens=3) == q.decode(max_new_tokens=3)
    assert p.whole == q.shapes[0]


@pytest.mark.parametrize(("frames", "ratio"), [(1, 5), (2, 7), (1, 24)])
def test_windows_end_where_those_of_the_whole_end_whatever_the_ratio(host, film, tiny, frames, ratio):
    method = windowed.video_xl(host, frames=frames)
    p = host.stream(film(7), tiny.questions[0], method, 1 / ratio, window=2)
    stops = [*range(ratio - 1, 112, ratio)]
    assert p.watched.stops == (stops if stops[-1] == 111 else [*stops, 111])  # what is left over gets one too
    before, calls = p.rows[0].first[0], p.watched.ran
    assert [fed for fed, _ in calls[1:]] == [own[-1] + 1 + len(own) for own in spans(p.watched.stops, 16 * frames)]
    assert calls[0] == (before, 0) and calls[-1][1] == p.watched.run.kept - len(spans(p.watched.stops, 16 * frames)[-1])


def test_another_question_is_read_behind_the_same_summary_tokens(host, film, tiny):
    method = windowed.video_xl(host)
    p = host.stream(film(9), tiny.questions[0], method, 0.25)
    p.choose_decode(make("decode", "random"), 0.5)
    p.decode(max_new_tokens=2)
    again = p.next_turn([tiny.questions[1]])
    fresh = host.stream(film(9), tiny.questions[1], method, 0.25)
    assert torch.allclose(again.logits, fresh.logits, atol=1e-5) and again.cached == fresh.cached
    more = again.ledger[0].total - p.ledger[0].total
    assert more < 0.2 * fresh.ledger[0].by_stage()["prefill"]  # nothing of the video runs again
    assert again.next_turn([tiny.questions[0]]).decode(max_new_tokens=2)
    assert len(p.fork([0, 0]).decode(max_new_tokens=1)) == 2
    with pytest.raises(BadInput, match="2 questions for 1 rows"):
        p.next_turn(["a ?", "b ?"])


def test_each_call_is_charged_and_torch_counts_what_the_ledger_says(folders, film, tiny):
    host = load_host(folders(text_tower=True))
    host.model.set_attn_implementation("eager")
    method = windowed.video_xl(host)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        p = host.stream(film(10), tiny.questions[0], method, 0.125, window=4)
        p.decode(max_new_tokens=3)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_decoder_never_gets_more_than_a_window(host, film, tiny, monkeypatch):
    seen, plain = [], Windows.window
    monkeypatch.setattr(Windows, "window", lambda self, x, stops: (seen.append(x.shape[1]), plain(self, x, stops)))
    host.stream(film(21), tiny.questions[0], windowed.video_xl(host), 1 / 16, window=16)
    assert seen == [64] * 5 + [16]


def test_memory_is_flat_but_for_the_keys_and_values_of_summary_tokens(host, film, tiny):
    method = windowed.video_xl(host)

    def stream(t):
        return lambda: host.stream(film(t), tiny.questions[0], method, 1 / 16, window=4)

    stream(9)()  # what is loaded or remembered once
    few, many = tensor_peak(stream(32)), tensor_peak(stream(96))
    cache = (96 - 32) * 4 * 2 * (2 * 8) * 4  # 4 layers, keys and values of 2 heads of 8, four bytes, 1 of 16 tokens
    assert many - few < 3.3 * cache  # a question is read behind a copy, and each step of a layer makes one more
    assert array_peak(stream(96)) <= 1.1 * array_peak(stream(32)) + 65536


def test_a_stream_by_name_needs_weights_a_ratio_and_a_host_that_numbers_anew(fresh, film, tiny):
    with pytest.raises(ValueError, match="video_xl: has no weights for this host"):
        fresh.stream(film(5), tiny.questions[0], "video_xl", 0.25)
    fresh.learned["prefill", "video_xl"] = windowed.video_xl(fresh).network
    assert fresh.stream(film(5), tiny.questions[0], "video_xl", 0.25).decode(max_new_tokens=1)
    for sizes in ({"keep": 0.3}, {"keep": 1.0}, {"memory": 4}, {}):
        with pytest.raises(ValueError, match="stream: video_xl needs keep = 1/2, 1/3 ..."):
            fresh.stream(film(5), tiny.questions[0], "video_xl", **sizes)
    with pytest.raises(BadInput, match="the video holds no frame"):
        fresh.stream(iter(()), tiny.questions[0], "video_xl", 0.25)


def test_methods_that_read_the_prompt_cannot_follow(fresh, film, tiny):
    fresh.learned["prefill", "video_xl"] = windowed.video_xl(fresh).network
    p = fresh.stream(film(5), tiny.questions[0], "video_xl", 0.25)
    with pytest.raises(HostError, match="look_m: reads accumulated_attention of the prompt"):
        p.run_stage("decode", [Plan.of(decode=("look_m", 0.5))])

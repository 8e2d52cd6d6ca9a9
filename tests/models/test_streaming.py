"""Videos that are never there whole: a stream is the pass over all of it, in memory that does not grow with it."""

import numpy as np
import pytest
import torch
from live import array_peak, tensor_peak
from torch.utils.flop_counter import FlopCounterMode

from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.errors import BadInput, HostError
from foveate.models.ledger import Ledger
from foveate.models.streaming import row_of, windows
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast
ASKED = "what is this ?"


@pytest.fixture
def film(tiny):
    """film(t): frames one by one, each made when it is asked for."""
    return lambda t, side=32: (tiny.picture(i, side, side) for i in range(t))


@pytest.mark.parametrize("settings", [{"text_tower": True}, {"tower": "siglip", "decoder": "qwen2"}], ids=str)
@pytest.mark.parametrize("name", ["moviechat", "dtd"])
@pytest.mark.parametrize("window", [1, 4, 16, 21])
def test_a_stream_answers_as_the_pass_over_the_whole_video(hosts, film, settings, name, window):
    host = hosts(**settings)
    p = host.stream(film(21), ASKED, name, 5 / 21, frames=21, window=window)
    q = host.open([np.stack(list(film(21)))], [ASKED]).run(Plan.of(projector=(name, 5 / 21)))
    answer = p.decode(max_new_tokens=5)
    assert p.stop == "prefill" and p.counts["projector"] == [80] == q.counts["projector"]
    if name == "moviechat":  # numbered anew in both; DTD keeps its places in a pass, a stream has none
        assert answer == q.decode(max_new_tokens=5) and torch.allclose(p.logits, q.logits, atol=1e-5)
        assert p.ledger[0].entries == q.ledger[0].entries
        mine, theirs = p.tokens[0], q.tokens[0]
        assert mine.size.equal(theirs.size) and mine.position.equal(theirs.position) and mine.grid == theirs.grid
    assert torch.allclose(p.tokens[0].x, q.tokens[0].x, atol=1e-5)
    for stage in ("input", "encoder", "outside"):
        assert p.ledger[0].tokens[stage] == 21 * 16 == p.counts[stage][0]


def test_dtd_with_a_threshold_keeps_in_a_stream_what_it_keeps_of_the_whole(host, film):
    for drift in (False, True):
        method = make("projector", "dtd", tau=0.9, drift=drift)
        q = host.open([np.stack(list(film(30)))], [ASKED])
        q.project(method, 0.3)
        for frames in (30, None):
            p = host.stream(film(30), ASKED, method, memory=9, frames=frames, window=7)
            assert p.tokens[0].position.equal(q.tokens[0].position) and not p.tokens[0].whole
            assert p.tokens[0].grid == (30, 4, 4) and p.tokens[0].size.eq(1).all()
            assert torch.allclose(p.tokens[0].x, q.tokens[0].x, atol=1e-5)


def test_the_prompt_has_the_memory_in_the_place_of_the_video_numbered_without_gaps(host, film):
    p = host.stream(film(12), ASKED, "moviechat", memory=3, frames=12, window=5)
    p.prefill()
    row, one = p.rows[0], host.open([np.stack(list(film(1)))], [ASKED]).rows[0]
    assert row.ids[row.view < 0].tolist() == one.ids[one.view < 0].tolist() and (row.view >= 0).sum() == 3 * 16
    stream = p.caches[0].stream
    assert stream.place[0, :, 0].tolist() == list(range(len(row.ids))) and int(stream.next_place) == len(row.ids)
    assert all(view.pixels.size == 3 for view in row.views)
    assert p.whole == host.open([np.stack(list(film(12)))], [ASKED]).shapes[0]
    assert host.forecast(UNCOMPRESSED, p.whole).total > p.ledger[0].total


def test_what_comes_in_clips_or_frame_by_frame_is_the_same_video(host, film):
    whole = np.stack(list(film(10)))
    wanted = host.stream(film(10), ASKED, "moviechat", memory=2).tokens[0].x
    given = [[whole], whole, [Clip.of(whole[:3]), *whole[3:]], iter([Clip.of(whole[:9]), Clip.of(whole[9:])])]
    for video in given:
        assert host.stream(video, ASKED, "moviechat", memory=2).tokens[0].x.equal(wanted)


def test_another_question_and_a_further_turn_go_on_behind_the_memory(hosts, film, tiny):
    host = hosts(tower="siglip", decoder="qwen2")
    p = host.stream(film(12), tiny.questions[0], "moviechat", memory=3)
    p.decode(max_new_tokens=3)
    again, fresh = p.next_turn([tiny.questions[1]]), host.stream(film(12), tiny.questions[1], "moviechat", memory=3)
    again.prefill()
    fresh.prefill()
    assert torch.allclose(again.logits, fresh.logits, atol=1e-5) and again.done[-1] == "prefill"
    assert len(p.fork([0, 0])) == 2


def test_methods_of_the_decoder_follow_and_those_that_read_the_tower_are_refused(host, film):
    p = host.stream(film(12), ASKED, "dtd", 0.25, frames=12)
    p.prefill(make("prefill", "fastv"), 0.5)
    p.choose_decode(make("decode", "look_m"), 0.5)
    assert p.counts["prefill"] == [24] and p.counts["decode"] == [12] and len(p.decode(max_new_tokens=2)) == 1
    q = host.stream(film(4), ASKED, "moviechat", memory=2)
    with pytest.raises(HostError, match="prefill: toy reads .*off the tower; a stream keeps nothing of it"):
        q.prefill(Reads(), 0.5)


class Reads(type(make("prefill", "fastv"))):
    """As FastV, but it would look at the tower."""

    name, kinds = "toy", frozenset({"cls_rank"})


def test_each_window_is_charged_and_torch_counts_what_the_ledger_says(folders, film):
    host = load_host(folders(text_tower=True))
    host.model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        p = host.stream(film(10), ASKED, "moviechat", memory=3, window=4)
        p.decode(max_new_tokens=3)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)
    ledger, totals, firsts = Ledger(), [], []
    for part in windows(host, film(10), ASKED, ledger, window=4):
        totals.append(ledger.by_stage()["encoder"])
        firsts.append(int(part.tokens.position[0, 0]))
    assert firsts == [0, 64, 128] and totals[1] == 2 * totals[0] and totals[2] == 2.5 * totals[0]


def test_a_memory_can_be_laid_out_by_whoever_walks_the_windows(host, film):
    part = next(windows(host, film(3), ASKED, Ledger(), window=3))
    row = row_of(host, part.row, 5, seed=7)
    assert row.shape.grids == ((1, 1, 5),) and row.seed == 7 and part.state.grid == (3, 4, 4)
    assert len(row.ids) == len(part.row.ids) - 48 + 5


@pytest.mark.parametrize("measure", [tensor_peak, array_peak])
@pytest.mark.parametrize(
    "method", [make("projector", "moviechat"), make("projector", "dtd", tau=0.99)], ids=lambda m: m.name
)
def test_memory_is_flat_from_64_to_512_frames_and_would_not_be_if_the_clip_were_held(host, film, method, measure):
    def stream(t):
        host.stream(film(t, 48), ASKED, method, memory=4, window=16).prefill()

    def whole(t):
        host.open([np.stack(list(film(t, 48)))], [ASKED]).project(method, 4 / t)

    stream(17)  # what is loaded, or remembered, once
    short, long, held = measure(lambda: stream(64)), measure(lambda: stream(512)), measure(lambda: whole(64))
    assert long <= 1.02 * short + 32768, "of 448 frames more not even 75 bytes each"
    assert held > 1.8 * long, "the measure sees a clip of 64 that is held"


def test_what_would_be_kept_of_the_windows_is_seen_too(host, film):
    def hoard(t):
        return [part.state for part in windows(host, film(t), ASKED, Ledger())]

    few, many = tensor_peak(lambda: hoard(32)), tensor_peak(lambda: hoard(96))
    assert many - few > 0.9 * 64 * 16 * 32 * 4  # tokens of width 32, four bytes each


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give keep or memory, one of them"),
        ({"keep": 0.5, "memory": 2, "frames": 9}, "give keep or memory, one of them"),
        ({"keep": 0.5}, "keep is a share of the video's tokens; it needs `frames`"),
        ({"keep": 2.0, "frames": 9}, "keep_ratio = 2.0 is outside"),
        ({"keep": 0.01, "frames": 9}, "moviechat: cannot hold 1 of 144 tokens, the least is 16"),
        ({"memory": 0}, "memory = 0 is below 1"),
        ({"memory": 2, "frames": 0}, "frames = 0 is below 1"),
        ({"memory": 2, "frames": 8}, "stream: 9 frames have come of a video of 8"),
        ({"memory": 2, "window": 0}, "window: 0 frames are below 1"),
        ({"memory": 2, "method": "dtd"}, "a stream of unknown length needs tau"),
        ({"memory": 2, "method": "evs"}, "evs: needs all of a video at once"),
        ({"memory": 2, "method": "nothing"}, "no compressor 'nothing' at stage 'projector'"),
        ({"memory": 2, "video": []}, "the video holds no frame"),
        ({"memory": 2, "video": [np.zeros((8, 8), np.uint8)]}, r"image 0: needs a uint8 array \(H, W, 3\)"),
        ({"memory": 2, "question": "<image> ?"}, "contains the image token"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(host, film, given, words):
    call = {"video": film(9), "question": ASKED, "method": "moviechat"} | given
    with pytest.raises(ValueError, match=words) as told:
        host.stream(call.pop("video"), call.pop("question"), call.pop("method"), **call)
    assert "\n" not in str(told.value)


def test_frames_of_two_sizes_are_refused(host, tiny):
    with pytest.raises(BadInput, match=r"frame 1: is \(40, 32\), the ones before are \(32, 32\)"):
        host.stream([tiny.picture(0), tiny.picture(1, 40, 32)], ASKED, "moviechat", memory=1)


def test_a_decoder_that_reads_cls_has_no_place_for_a_video(hosts, film):
    with pytest.raises(BadInput, match="decoder reads a CLS of each picture"):
        hosts(strategy="full").stream(film(4), ASKED, "moviechat", memory=1)

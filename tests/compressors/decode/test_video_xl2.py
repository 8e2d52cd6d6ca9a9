import dataclasses

import pytest
import torch

from foveate.compressors.base import apply_kv
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def relevance(frames, text, by_frame):
    """(1, S) frame_relevance of entries that show these frames."""
    values = [0.0] * text[0] + [by_frame[f] for f in frames] + [0.0] * text[1]
    return torch.tensor([values])


def test_ten_chunks_of_four_units_with_four_dense_keep_3168_of_5760(tiny_cache):
    frames = [f for f in range(40) for _ in range(144)]
    wanted = {f: 1.0 if f // 4 in (3, 6) else 0.1 for f in range(40)}  # the first and the last chunk are dense anyway
    cache = tiny_cache(
        visual=5760, text=(7, 20), heads=1, dim=2, frame=frames, frame_relevance=relevance(frames, (7, 20), wanted)
    )
    reduction = make("decode", "video_xl2").reduce(cache, 3168)
    assert reduction.keep.shape == (1, 1, 27 + 3168) and 3168 == 4 * 576 + 6 * 144
    kept, entries = apply_kv(reduction, cache.keys)[0, 0], cache.keys[0, 0]
    at, source = 7, 7
    for chunk in range(10):
        own = entries[source : source + 576]
        now = own if chunk in (0, 3, 6, 9) else own.view(144, 4, 2).mean(1)
        assert torch.allclose(kept[at : at + len(now)], now, atol=1e-6), chunk
        at, source = at + len(now), source + 576
    assert torch.equal(kept[:7], entries[:7]) and torch.equal(kept[at:], entries[source:])


@pytest.mark.parametrize("pool", [1, 4])
def test_all_dense_leaves_the_cache_as_it_is(tiny_cache, pool):
    cache = tiny_cache(visual=24, frame=[f for f in range(6) for _ in range(4)])
    reduction = make("decode", "video_xl2", chunk=2, pool=pool).reduce(cache, 24)
    assert torch.equal(apply_kv(reduction, cache.values), cache.values)


def test_the_share_of_dense_chunks_follows_from_the_ratio(tiny_cache):
    frames = [f for f in range(16) for _ in range(8)]
    cache = tiny_cache(visual=128, frame=frames, heads=1)
    q = 0.25 + 0.75 * 0.5  # f = (q - 1/c) / (1 - 1/c) = one half of four chunks
    reduction = make("decode", "video_xl2").reduce(cache, int(q * 128))
    members = reduction.into[0, 0, 2:-3].bincount()[2:]
    assert int((members == 1).sum()) == 64 and int((members == 4).sum()) == 16


def test_the_most_relevant_chunk_becomes_dense_after_the_first_and_the_last(tiny_cache):
    frames = [f for f in range(4) for _ in range(4)]
    by = {0: 0.0, 1: 0.2, 2: 0.9, 3: 0.0}
    cache = tiny_cache(visual=16, text=(0, 0), heads=1, frame=frames, frame_relevance=relevance(frames, (0, 0), by))
    method = make("decode", "video_xl2", chunk=1)
    for count, wanted in ((4, []), (7, [0]), (10, [0, 3]), (13, [0, 2, 3]), (16, [0, 1, 2, 3])):
        into = method.reduce(cache, count).into[0, 0].view(4, 4)
        assert [f for f in range(4) if len(into[f].unique()) == 4] == wanted


def test_what_is_left_of_the_count_makes_the_next_runs_dense_entry_by_entry(tiny_cache):
    cache = tiny_cache(visual=8, text=(0, 0), heads=1, frame=[0] * 4 + [1] * 4)
    into = make("decode", "video_xl2", chunk=1).reduce(cache, 4).into[0, 0].tolist()
    assert into == [0, 1, 2, 2, 3, 3, 3, 3]


def test_a_frame_that_runs_do_not_divide_ends_in_a_shorter_one(tiny_cache):
    cache = tiny_cache(visual=12, text=(0, 0), heads=1, frame=[0] * 6 + [1] * 6)
    assert make("decode", "video_xl2").reduce(cache, 4).into[0, 0].tolist() == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2


def test_runs_grow_where_even_pooling_all_is_too_much_and_then_join_frames(tiny_cache):
    frames = [f for f in range(4) for _ in range(4)]
    cache = tiny_cache(visual=16, text=(1, 1), heads=1, frame=frames)
    for count, runs in ((3, [8, 4, 4]), (2, [8, 8]), (1, [16])):
        into = make("decode", "video_xl2", pool=2).reduce(cache, count).into[0, 0]
        assert into[1:-1].bincount()[1:].tolist() == runs
        assert (into[0], into[-1]) == (0, count + 1)


def test_text_between_frames_stays_where_it_is(tiny_cache):
    cache = tiny_cache(visual=8, text=(1, 1), heads=1, frame=[0] * 4 + [1] * 4)
    stamp = torch.tensor([0, 1, 1, 1, 1, 0, 1, 1, 1, 0]).bool()  # entry 5 is a time stamp within the second run
    cache = dataclasses.replace(cache, visual=stamp, frame=torch.tensor([-1, 0, 0, 0, 0, -1, 1, 1, 1, -1]))
    reduction = make("decode", "video_xl2").reduce(cache, 2)
    assert reduction.keep[0, 0].tolist() == [0, 1, 5, 6, 9]
    assert torch.allclose(apply_kv(reduction, cache.keys)[0, 0, 3], cache.keys[0, 0, 6:9].mean(0), atol=1e-6)


def test_one_picture_is_one_chunk(tiny_cache):
    into = make("decode", "video_xl2").reduce(tiny_cache(visual=12, text=(0, 0), heads=1), 6).into[0, 0].tolist()
    assert into == [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5]


def test_wrong_hyperparameters_are_named():
    with pytest.raises(ValueError, match="video_xl2: chunk 0 and pool 4 must be at least 1"):
        make("decode", "video_xl2", chunk=0)

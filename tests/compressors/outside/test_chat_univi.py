"""Chat-UniVi: events, levels, and what stands where."""

import pytest
import torch

from foveate.compressors.base import apply, apply_size, in_order
from foveate.compressors.outside.chat_univi import levels, nearest
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def method(**options):
    return make("outside", "chat_univi", **options)


def line(tiny, values, *grid):
    x = torch.tensor(values, dtype=torch.float32).view(1, -1, 1)
    return tiny(n=x.shape[1], grid=grid, x=x)


def test_the_published_counts():
    assert levels(112, 256) == (64, 32, 16)
    assert [method().events((t, 16, 16), 112) for t in (1, 2, 16)] == [1, 2, 1]
    assert method().events((64, 16, 16), 448) == 4 and 448 // 4 == 112
    assert [nearest(5, c) for c in (64, 5, 4, 2, 1)] == [5, 5, 2, 1, 1]


def test_more_events_where_one_cannot_take_the_count():
    assert [method().events((8, 2, 2), count) for count in (1, 7, 8, 14, 15, 32)] == [1, 1, 2, 2, 3, 5]


def test_levels_follow_four_to_two_to_one_within_what_a_frame_has():
    assert [levels(count, 4) for count in (1, 3, 4, 6, 7)] == [(1, 0, 0), (3, 0, 0), (3, 1, 0), (4, 2, 0), (4, 2, 1)]
    for n in range(1, 40):
        for count in range(1, 7 * n // 4 + 1):
            fine, middle, coarse = levels(count, n)
            assert fine + middle + coarse == count and coarse <= middle <= fine <= n


def test_a_picture_becomes_its_clusters_then_the_clusters_of_these(tiny):
    tokens = line(tiny, [0, 0, 10, 10, 20, 20, 31, 31], 1, 2, 4)
    reduction = in_order(method(neighbours=(2, 3, 3)).reduce(tokens, 7))
    made = apply(reduction, tokens.x).flatten().tolist()
    assert made == [0, 10, 20, 31, 5, 25.5, 15.25]  # fine ones at their places, pairs of these, all
    assert reduction.anchor.tolist() == [[0, 2, 4, 6, -1, -1, -1]]
    assert apply_size(reduction, tokens.size).sum().item() == pytest.approx(8)


def test_frames_of_one_scene_are_one_event_whatever_lies_between(tiny):
    tokens = line(tiny, [0, 1, 100, 101, 0, 1, 100, 101], 4, 1, 2)
    assert method(frames=2).event_of(tokens.x.view(1, 4, 2, 1).mean(2), 2).tolist() == [[0, 1, 0, 1]]
    reduction = in_order(method(frames=2).reduce(tokens, 4))
    assert sorted(apply(reduction, tokens.x).flatten().tolist()) == [0, 1, 100, 101]
    assert apply_size(reduction, tokens.size).tolist() == [[2, 2, 2, 2]]


def test_as_many_clusters_as_tokens_leaves_each_by_itself(tiny):
    tokens = tiny(n=12, grid=(3, 2, 2))
    reduction = in_order(method(frames=1).reduce(tokens, 9))  # an event for each frame, 3 fine tokens of 4
    assert apply_size(reduction, tokens.size).sum().item() == 12
    tokens = tiny(n=3, grid=(1, 1, 3))
    reduction = in_order(method().reduce(tokens, 3))
    assert torch.equal(apply(reduction, tokens.x), tokens.x)


def test_a_hyperparameter_outside_its_range_is_named():
    with pytest.raises(ValueError, match="chat_univi: frames 0"):
        method(frames=0)

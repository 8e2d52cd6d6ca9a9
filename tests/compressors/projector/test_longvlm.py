"""LongVLM: segments, what merges in them, and the tokens of the whole."""

import dataclasses

import pytest
import torch

from foveate.compressors.matching import rounds
from foveate.compressors.registry import make
from foveate.compressors.trial import for_method

pytestmark = pytest.mark.fast


def method(**options):
    return make("projector", "longvlm", **options)


def clip(tiny, t, n, dim=16, **options):
    """Random tokens of t frames of 1 x n with every signal of the method."""
    return for_method(tiny(n=t * n, grid=(t, 1, n), dim=dim, **options), method())


def test_rounds_are_the_published_lists():
    assert rounds(2560, 30) == [1280, 640, 320, 160, 80, 40, 10]  # 224 px
    assert rounds(5760, 50) == [2880, 1440, 720, 360, 180, 90, 40]  # 336 px
    capped, left = [], 2560
    for r in (2880, 1440, 720, 360, 180, 90, 40):  # the second list where the first one belongs
        capped.append(min(r, left // 2))
        left -= capped[-1]
    assert left == 20 and rounds(2560, 20) == capped


def test_100_frames_of_256_tokens_give_30_tokens_a_segment_behind_24_global_ones():
    whole, segments = method().parts((100, 16, 16), 324)
    assert whole == 24 and segments == [(2560 * i, 2560 * (i + 1), 30) for i in range(10)]
    assert method(global_tokens=False).parts((100, 16, 16), 300) == (0, segments)


@pytest.mark.parametrize("t", [1, 9, 10, 11, 19, 21, 40])
def test_every_segment_gets_at_least_one_token_and_no_more_than_it_has(t):
    for count in method().reachable((t, 1, 3)):
        whole, segments = method().parts((t, 1, 3), count)
        assert whole + sum(left for *_, left in segments) == count
        assert all(1 <= left <= last - first for first, last, left in segments)


def test_both_even_tokens_merge_into_their_best_odd_one(tiny):
    x = torch.tensor([[[1, 0], [1, 0.1], [0, 1], [0.1, 1]]])
    tokens = for_method(tiny(n=4, grid=(1, 2, 2), x=x), method())
    made = method(groups=1).resample(tokens, 2)
    assert torch.allclose(made.x, torch.tensor([[[1, 0.05], [0.05, 1]]]))
    assert made.position.tolist() == [[1, 3]]


def test_tokens_of_different_segments_never_merge(tiny):
    tokens = clip(tiny, 4, 4, x=torch.ones(1, 16, 16))
    x = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1).expand(1, 16, 16) + 1
    made = method(segment=2).resample(dataclasses.replace(tokens, x=x.contiguous()), 2)
    assert made.x[0, :, 0].tolist() == [1.5, 3.5]


def test_global_tokens_stand_first_come_from_spread_blocks_and_ignore_the_order_of_frames(tiny):
    tokens = clip(tiny, 5, 8)
    own = {f"cls_states.l{i:02}": torch.full((1, 40, 16), float(i)) for i in range(24)}
    made = method().resample(dataclasses.replace(tokens, signals=own), 39)
    assert made.x[0, :3, 0].tolist() == [7, 15, 23] and made.position[0, :4].tolist()[:3] == [-1, -1, -1]
    order = torch.arange(40).view(5, 8)[[3, 0, 4, 1, 2]].flatten()
    moved = {key: value[:, order] for key, value in tokens.signals.items() if key.startswith("cls_states.")}
    still = method().resample(tokens, 39).x[:, :3]
    assert torch.allclose(method().resample(dataclasses.replace(tokens, signals=moved), 39).x[:, :3], still, atol=1e-6)


def test_what_merges_is_a_mean_over_all_tokens(tiny):
    tokens = clip(tiny, 3, 4)
    made = method().resample(tokens, 1)
    assert torch.allclose(made.x[0, 0], tokens.x[0].mean(0), atol=1e-5)


def test_a_hyperparameter_outside_its_range_is_named():
    with pytest.raises(ValueError, match="longvlm: segment 0"):
        method(segment=0)

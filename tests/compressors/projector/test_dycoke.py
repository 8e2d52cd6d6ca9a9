import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def kept(tiny, x, grid, count):
    return make("projector", "dycoke").reduce(tiny(n=x.shape[1], grid=grid, x=x), count).anchor[0]


def test_a_window_of_four_frames_of_two_tokens(tiny):
    # likeness of frames 0-1: 1, .7071; 0-2: 1, -1; 2-3: .9806, 1; a prune rate of .5 leaves one token of each
    x = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [1, 1], [1, 0], [0, -1], [1, 0.2], [0, -1]]])
    assert kept(tiny, x, (4, 1, 2), 5).tolist() == [0, 1, 3, 5, 6]


def clip(frames, each=12):
    return torch.randn(1, frames * each, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("frames", "whole"), [(2, [0]), (4, [0]), (8, [0, 4]), (9, [0, 4, 8]), (11, [0, 4, 8])])
def test_windows_keep_a_whole_frame_and_equal_parts_of_the_others(tiny, frames, whole):
    count = 12 * len(whole) + 5 * (frames - len(whole))
    number = (kept(tiny, clip(frames), (frames, 3, 4), count) // 12).bincount(minlength=frames)
    assert number.tolist() == [12 if t in whole else 5 for t in range(frames)]


def test_a_static_clip_keeps_as_many_and_the_lowest_places(tiny):
    still = clip(1).repeat(1, 8, 1)
    anchor = kept(tiny, still, (8, 3, 4), 2 * (12 + 3 * 4))
    assert anchor.tolist() == [p for t in range(8) for p in range(t * 12, t * 12 + (12 if t % 4 == 0 else 4))]


def test_a_quarter_is_the_floor_and_there_whole_frames_alone_are_left(tiny):
    assert list(make("projector", "dycoke").reachable((8, 3, 4))) == list(range(24, 97))
    anchor = kept(tiny, clip(8), (8, 3, 4), 24)
    assert (anchor // 12).unique().tolist() == [0, 4]
    assert kept(tiny, clip(8), (8, 3, 4), 96).tolist() == list(range(96))  # nothing pruned: the identity


def test_published_sizes():
    # 32 frames of 196 at a prune rate of .7: 58 tokens of each thinned frame, 2960 in all
    assert 8 * (196 + 3 * 58) == 2960 and 2960 in make("projector", "dycoke").reachable((32, 14, 14))


def test_a_window_of_one_is_refused():
    with pytest.raises(ValueError, match="dycoke: window 1 is below 2"):
        make("projector", "dycoke", window=1)

"""TESTA behind the tower: the vote of patches, merged frames, and what becomes of a count."""

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.outside.testa import merged_frames, mode
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

# two patches in each of four frames
KEYS = torch.tensor(
    [[[[1, 0], [1, 0]], [[1, 0.1], [0.9, 0.2]], [[0, 1], [0.5, 0.5]], [[0.2, 1], [0, 1]]]], dtype=torch.float32
)


def method(**options):
    return make("outside", "testa", **options)


@pytest.mark.parametrize("vote", ["mean", "mode"])
def test_the_frame_whose_patches_agree_best_merges_into_their_choice(vote):
    reduction = merged_frames(KEYS, torch.ones(1, 8), 1, vote)
    assert reduction.anchor.tolist() == [[4, 5, 2, 3, 6, 7]]  # frame 2, frames 0 and 1, frame 3
    made = apply(reduction, KEYS.view(1, 8, 2)).view(3, 2, 2)
    assert torch.allclose(made[1], KEYS[0, :2].mean(0))
    assert apply_size(reduction, torch.ones(1, 8)).tolist() == [[1, 1, 2, 2, 1, 1]]


def test_where_patches_disagree_the_lower_frame_of_equal_votes_is_taken():
    reduction = merged_frames(KEYS, torch.ones(1, 8), 2, "mean")  # frame 2: patch 0 wants frame 3, patch 1 frame 1
    assert reduction.anchor.tolist() == [[2, 3, 6, 7]]
    assert apply_size(reduction, torch.ones(1, 8)).tolist() == [[3, 3, 1, 1]]


def test_the_mode_is_the_most_frequent_then_the_least():
    assert mode(torch.tensor([[3.0, 1, 3, 2], [4, 2, 5, 3], [1, 1, 2, 2]])).tolist() == [3, 2, 1]


def test_frames_that_stand_twice_merge_back_to_the_film(tiny):
    film = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    twice = film.repeat_interleave(2, dim=1)
    reduction = merged_frames(twice, torch.ones(1, 24), 3, "mean")
    assert torch.allclose(apply(reduction, twice.view(1, 24, 6)), film.view(1, 12, 6), atol=1e-6)
    assert (apply_size(reduction, torch.ones(1, 24)) == 2).all()


def test_32_frames_of_196_patches_become_20_of_52():
    assert method().left((32, 14, 14), 1040) == (20, 52)
    assert method(share=0.507).left((96, 14, 14), 4800) == (48, 100)
    assert method(share=1).left((8, 7, 7), 196) == (4, 49) and method(share=0).left((8, 7, 7), 200) == (8, 25)


def test_no_more_slots_than_the_count_and_nothing_is_lost(tiny):
    tokens = tiny(n=60, grid=(4, 3, 5), batch=2)
    for count in (1, 7, 20, 31, 59):
        reduction = method().reduce(tokens, count)
        frames, patches = method().left((4, 3, 5), count)
        assert reduction.anchor.shape[1] == frames * patches <= count
        assert torch.allclose(apply_size(reduction, tokens.size).sum(-1), torch.tensor([60.0, 60]))
        x = apply_size(reduction, tokens.size).unsqueeze(-1) * apply(reduction, tokens.x)
        assert torch.allclose(x.sum(1), tokens.x.sum(1), atol=1e-4)


def test_time_alone_keeps_frames_whole(tiny):
    tokens = tiny(n=24, grid=(4, 2, 3))
    reduction = method(share=1).reduce(tokens, 18)
    frame = reduction.anchor.view(3, 6) // 6
    assert (frame == frame[:, :1]).all() and (reduction.anchor.view(3, 6) % 6 == torch.arange(6)).all()


@pytest.mark.parametrize("options", [{"share": 1.5}, {"vote": "median"}])
def test_a_hyperparameter_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match="testa: share"):
        method(**options)

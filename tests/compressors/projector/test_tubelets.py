"""Tubelets: means over space and time."""

import pytest

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_two_frames_of_two_by_two_become_their_mean(grid_of):
    made = make("projector", "tubelets").resample(grid_of(range(32), 4, 2, 4), 4)
    assert made.x.flatten().tolist() == [6.5, 8.5, 22.5, 24.5] and made.grid_out == (2, 1, 2)


def test_an_odd_last_frame_is_a_pair_with_itself(grid_of):
    method = make("projector", "tubelets", blocks=((2, 2, 2),))
    assert method.reachable((5, 32, 20)) == method.reachable((6, 32, 20)) == [480]  # 448 x 280 pixels in 14 x 14
    assert method.reachable((8, 32, 32)) == [1024]
    made = method.resample(grid_of([0, 0, 0, 0, 4, 4, 4, 4, 9, 9, 9, 9], 3, 2, 2), 2)
    assert made.x.flatten().tolist() == [2, 9]


def test_of_two_blocks_with_one_count_the_first_is_taken(grid_of):
    clip = grid_of([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], 4, 2, 2)
    assert make("projector", "tubelets").resample(clip, 4).x.flatten().tolist() == [1.5, 5.5, 9.5, 13.5]
    over_time = make("projector", "tubelets", blocks=((4, 1, 1), (1, 2, 2))).resample(clip, 4)
    assert over_time.x.flatten().tolist() == [6, 7, 8, 9]


def test_a_block_without_a_side_is_refused():
    with pytest.raises(ValueError, match="tubelets: blocks"):
        make("projector", "tubelets", blocks=((0, 1, 1),))

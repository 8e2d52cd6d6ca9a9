"""SlowFast-LLaVA: which frames, which pools, in which order."""

import pytest

from foveate.compressors.projector.slowfast_llava import choices
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def method(**options):
    return make("projector", "slowfast_llava", **options)


def test_the_published_clip_gives_3680_tokens_of_28800():
    assert choices((50, 24, 24), (2, 4, 1), (1, 2, 4, 6))[3680] == (10, (1, 2), 4)
    assert 3680 in method().reachable((50, 24, 24)) and 10 * 288 + 50 * 16 == 3680


def test_slow_frames_are_spread_evenly_and_stand_before_the_fast_path(grid_of):
    frames = [float(10 * t + i) for t in range(5) for i in range(4)]  # five frames of 2 x 2
    made = method(fast=(1,)).resample(grid_of(frames, 5, 2, 2), 2 * 2 + 5)
    slow, fast = made.x.flatten()[:4].tolist(), made.x.flatten()[4:].tolist()
    assert slow == [1, 3, 21, 23]  # frames 0 and 2, the larger of each pair side by side
    assert fast == [1.5, 11.5, 21.5, 31.5, 41.5]
    assert made.position.eq(-1).all() and made.grid_out is None


def test_in_order_of_time_each_token_stands_in_its_frame(grid_of):
    made = method(fast=(1,), order="time").resample(grid_of(range(20), 5, 2, 2), 9)
    assert made.position.tolist() == [[1, 3, 9, 11, 3, 7, 11, 15, 19]]


def test_a_row_of_odd_width_keeps_its_last_token_by_itself(grid_of):
    made = method(fast=(0,), mode="mean").resample(grid_of([1, 3, 8, 5, 7, 9], 1, 2, 3), 4)
    assert made.x.flatten().tolist() == [2, 8, 6, 9]


def test_a_constant_clip_stays_constant(grid_of):
    made = method().resample(grid_of([3.0] * 24, 4, 2, 3), 4 * 4 + 4)
    assert made.x.flatten().tolist() == [3] * 20


def test_all_frames_as_they_are_and_no_fast_path_is_the_identity(grid_of):
    made = method(pools=(1,), fast=(0,)).resample(grid_of(range(24), 4, 2, 3), 24)
    assert made.x.flatten().tolist() == list(range(24))


def test_a_fast_token_is_the_mean_of_its_cell(grid_of):
    made = method(pools=(4,), fast=(2,)).resample(grid_of(range(32), 2, 4, 4), 4 + 8)
    assert made.x.flatten()[4:].tolist() == [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]


def test_the_first_pool_that_gives_a_count_is_taken_and_the_share_of_the_fast_path_decides():
    found = choices((4, 4, 4), (2, 4, 1), (1, 2))
    assert found[8 + 4] == (1, (1, 2), 1)  # 8 slow tokens, not two frames of 4
    assert found[8 + 16] == (1, (1, 2), 2) and found[4 + 4] == (1, (2, 2), 1)


@pytest.mark.parametrize("options", [{"mode": "sum"}, {"order": "space"}, {"pools": (3,)}, {"fast": ()}])
def test_a_hyperparameter_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match="slowfast_llava: "):
        method(**options)

import dataclasses

import pytest

from foveate.compressors.outside.stride import spread
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_a_square_count_on_a_square_grid_is_a_square_lattice():
    assert spread((1, 6, 6), 9) == (7, 9, 11, 19, 21, 23, 31, 33, 35)
    lattice = [24 * row + column for row in range(1, 24, 2) for column in range(1, 24, 2)]
    assert list(spread((1, 24, 24), 144)) == lattice


def test_one_token_is_the_middle():
    assert spread((1, 5, 5), 1) == (12,) and spread((3, 1, 1), 1) == (1,)


@pytest.mark.parametrize("grid", [(1, 1, 9), (1, 9, 1), (1, 5, 7), (1, 16, 4), (4, 3, 3), (5, 1, 2)])
def test_every_count_is_met_exactly_in_order(grid):
    total = grid[0] * grid[1] * grid[2]
    for count in range(1, total + 1):
        kept = spread(grid, count)
        assert len(kept) == count and list(kept) == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < total


@pytest.mark.parametrize("count", [8, 13, 20, 31])
def test_no_part_of_the_image_is_left_out(count):
    kept = spread((1, 8, 8), count)
    for top in (0, 4):
        for left in (0, 4):
            inside = [i for i in kept if top <= i // 8 < top + 4 and left <= i % 8 < left + 4]
            assert abs(len(inside) - count / 4) <= 2


def test_frames_are_spread_evenly_too():
    assert [i // 4 for i in spread((8, 2, 2), 4)] == [1, 3, 5, 7]


def test_tokens_that_are_no_longer_a_grid_are_sampled_in_their_order(tiny):
    tokens = dataclasses.replace(tiny(n=10), grid=(1, 4, 4))
    assert make("prefill", "stride").reduce(tokens, 5).anchor.tolist() == [[1, 3, 5, 7, 9]]
    assert make("prefill", "stride").reduce(tokens, 10).anchor.tolist() == [list(range(10))]


def test_rows_of_a_batch_get_the_same_places(tiny):
    assert make("outside", "stride").reduce(tiny(n=12, batch=2), 3).anchor.tolist() == [[2, 9, 11]] * 2

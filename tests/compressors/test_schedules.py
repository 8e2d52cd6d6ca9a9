import pytest

from foveate.compressors.schedules import evenly, falling, geometric

pytestmark = pytest.mark.fast


def test_equal_removals_with_the_remainder_first():
    assert evenly(20, 9, 3) == [16, 12, 9]
    assert evenly(5, 4, 3) == [4, 4, 4] and evenly(5, 5, 2) == [5, 5]


def test_equal_shares_are_parts_of_the_first_number_and_the_last_leaves_the_count():
    assert geometric(576, 72, 3) == [288, 144, 72]  # 0.5 ** 3 of 576, never 71 for 71.99999
    assert geometric(10, 1, 3) == [4, 2, 1] and geometric(10, 1, 3, share=0.5) == [5, 2, 1]
    assert geometric(10, 6, 3, share=0.5) == [6, 6, 6] and geometric(10, 6, 1) == [6]


def test_layers_that_remove_nothing_are_left_out():
    assert falling(5, [2, 4, 6], [4, 4, 3]) == [(2, 4), (6, 3)]
    assert falling(5, [0, 1], [5, 4]) == [(1, 4)] and falling(5, [0], [5]) == []

import pytest

from foveate.compressors.schedules import evenly, falling

pytestmark = pytest.mark.fast


def test_equal_removals_with_the_remainder_first():
    assert evenly(20, 9, 3) == [16, 12, 9]
    assert evenly(5, 4, 3) == [4, 4, 4] and evenly(5, 5, 2) == [5, 5]


def test_layers_that_remove_nothing_are_left_out():
    assert falling(5, [2, 4, 6], [4, 4, 3]) == [(2, 4), (6, 3)]
    assert falling(5, [0, 1], [5, 4]) == [(1, 4)] and falling(5, [0], [5]) == []

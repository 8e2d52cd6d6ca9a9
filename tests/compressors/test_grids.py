import pytest

from foveate.compressors.grids import largest, shrunk

pytestmark = pytest.mark.fast


def by_rule(height, width, ratio):
    """The grid that a ratio asks for, each axis by itself."""
    return tuple(min(max(round(axis * ratio**0.5), 1), axis) for axis in (height, width))


@pytest.mark.parametrize(
    ("side", "sides"), [(24, (24, 21, 17, 12, 8, 6)), (27, (27, 23, 19, 14, 9, 7))], ids=["24x24", "27x27"]
)
def test_published_ratios_give_published_grids(side, sides):
    for ratio, wanted in zip((1.0, 0.75, 0.5, 0.25, 0.111, 0.0625), sides, strict=True):
        assert by_rule(side, side, ratio) == (wanted, wanted)
        assert (wanted, wanted) in shrunk(side, side)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 7), (10, 6), (1, 9), (16, 5)])
def test_holds_every_grid_that_some_ratio_gives_and_no_other(height, width):
    seen = {by_rule(height, width, step / 40000) for step in range(1, 40001)}
    assert seen <= set(shrunk(height, width))
    # the rest are grids at a single ratio, where both axes are halfway at once
    for h, w in set(shrunk(height, width)) - seen:
        assert any(by_rule(height, width, s * s) == (h, w) for s in {(2 * k + 1) / (2 * height) for k in range(height)})


def test_both_axes_grow_together():
    for grids in (shrunk(10, 6), shrunk(3, 7)):
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in zip(grids, grids[1:], strict=False))
        assert grids[0] == (1, 1)


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (24, (4, 4)), (25, (5, 5)), (35, (5, 5)), (64, (8, 8))])
def test_largest_grid_that_fits(count, grid):
    assert largest(8, 8, count) == grid


def test_a_square_grid_has_all_its_squares():
    assert shrunk(8, 8) == tuple((side, side) for side in range(1, 9))

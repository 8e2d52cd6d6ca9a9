import pytest

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("grid", "count", "target"),
    [
        ((1, 24, 24), 576, (1, 24, 24)),
        ((1, 24, 24), 441, (1, 21, 21)),
        ((1, 24, 24), 440, (1, 20, 20)),
        ((1, 24, 24), 144, (1, 12, 12)),
        ((1, 27, 27), 182, (1, 13, 13)),
        ((1, 16, 8), 32, (1, 8, 4)),
        ((1, 16, 8), 1, (1, 1, 1)),
        ((1, 1, 9), 4, (1, 1, 4)),
        ((8, 16, 16), 8 * 64 + 7, (8, 8, 8)),
    ],
)
def test_the_largest_grid_of_the_same_shape_that_fits(grid, count, target):
    assert make("input", "downsample").target(grid, count) == target


def test_frames_are_kept_so_fewer_tokens_than_frames_are_refused():
    with pytest.raises(ValueError, match="count 3 is below 4, one token for each frame"):
        make("input", "downsample").target((4, 2, 2), 3)

import pytest

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("grid", "count", "target"),
    [
        ((8, 4, 4), 128, (8, 4, 4)),
        ((8, 4, 4), 127, (7, 4, 4)),
        ((8, 4, 4), 64, (4, 4, 4)),
        ((8, 4, 4), 16, (1, 4, 4)),
        ((3, 4, 4), 24, (1, 4, 4)),  # half of three frames: one and a half
        ((1, 4, 4), 16, (1, 4, 4)),
    ],
)
def test_as_many_whole_frames_as_fit(grid, count, target):
    assert make("input", "frames").target(grid, count) == target


def test_whole_frames_are_all_that_can_be_reached():
    assert list(make("input", "frames").reachable((4, 2, 3))) == [6, 12, 18, 24]


def test_less_than_one_frame_is_refused():
    with pytest.raises(ValueError, match=r"frames: count 5 is below 6, one whole frame of grid \(4, 2, 3\)"):
        make("input", "frames").target((4, 2, 3), 5)

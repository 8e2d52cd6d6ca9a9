import pytest

from foveate.compressors.input.fastvlm import FastVLM
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_the_published_resolutions_give_the_published_token_counts():
    """256, 384, 512, 768 and 1024 px at 64 px a token."""
    assert make("input", "fastvlm").reachable((1, 16, 16)) == [16, 36, 64, 144, 256]


@pytest.mark.parametrize(
    ("grid", "count", "target"),
    [
        ((1, 16, 16), 256, (1, 16, 16)),
        ((1, 16, 16), 255, (1, 12, 12)),
        ((1, 24, 24), 144, (1, 12, 12)),
        ((1, 24, 24), 81, (1, 9, 9)),
        ((1, 12, 12), 36, (1, 6, 6)),
        ((1, 12, 12), 35, (1, 5, 5)),  # 4.5 rounds up
        ((2, 16, 8), 64, (2, 8, 4)),
        ((1, 1, 1), 1, (1, 1, 1)),
    ],
)
def test_the_largest_rung_that_fits(grid, count, target):
    assert make("input", "fastvlm").target(grid, count) == target


def test_a_count_below_the_lowest_rung_is_refused():
    with pytest.raises(ValueError, match=r"count 15 is below 16, the lowest rung of grid \(1, 16, 16\)"):
        make("input", "fastvlm").target((1, 16, 16), 15)


@pytest.mark.parametrize("ladder", [(), (8, 4), (0, 4), (4, 4), (4, 17)])
def test_a_ladder_that_is_none_is_refused(ladder):
    with pytest.raises(ValueError, match="fastvlm: ladder"):
        FastVLM(ladder=ladder)


def test_only_a_longer_ladder_reaches_other_counts():
    assert FastVLM(ladder=(2, 16)).reachable((1, 16, 16)) == [4, 256]

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("side", "count", "wanted"),
    [
        (4, 9, [2.5, 3.5, 4.5, 6.5, 7.5, 8.5, 10.5, 11.5, 12.5]),
        (5, 4, [6, 8, 16, 18]),
        (5, 9, [3, 4.5, 6, 10.5, 12, 13.5, 18, 19.5, 21]),
    ],
)
def test_cells_may_overlap(grid_of, side, count, wanted):
    made = make("projector", "deco").resample(grid_of(range(side * side), 1, side, side), count)
    assert made.x.flatten().tolist() == pytest.approx(wanted)


def test_on_a_divisor_it_is_average_pooling_and_the_mean_stays(tiny):
    tokens = tiny(n=64, grid=(1, 8, 8))
    made = make("projector", "deco").resample(tokens, 16)
    whole_cells = make("projector", "average_pool", cells="whole").resample(tokens, 16)
    assert torch.allclose(made.x, whole_cells.x, atol=1e-6)
    assert torch.allclose(made.x.mean(1), tokens.x.mean(1), atol=1e-6)


def test_it_acts_before_the_projector():
    assert make("projector", "deco").hook == "before" and make("projector", "average_pool").hook == "after"

import dataclasses

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_two_by_two_cells(grid_of):
    made = make("projector", "average_pool").resample(grid_of(range(36), 1, 6, 6), 9)
    assert made.x.flatten().tolist() == [3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5]
    assert made.grid_out == (1, 3, 3)
    assert made.position.tolist() == [[0, 2, 4, 12, 14, 16, 24, 26, 28]]


def test_one_token_is_the_mean_of_all(grid_of):
    made = make("projector", "average_pool").resample(grid_of(range(25), 1, 5, 5), 1)
    assert made.x.item() == 12 and made.position.item() == 12


def test_all_tokens_are_themselves(grid_of):
    tokens = grid_of(range(20), 1, 4, 5)
    made = make("projector", "average_pool").resample(tokens, 20)
    assert torch.equal(made.x, tokens.x) and made.position.tolist() == [list(range(20))]


@pytest.mark.parametrize(("height", "width", "h", "w"), [(5, 5, 3, 3), (10, 6, 5, 3), (7, 3, 5, 2), (27, 27, 14, 14)])
def test_cells_of_a_grid_that_does_not_divide_equal_means_by_loops(tiny, height, width, h, w):
    tokens = tiny(n=height * width, grid=(1, height, width), dim=2)
    image = tokens.x.view(height, width, 2)
    wanted = []
    for i in range(h):
        for j in range(w):
            rows = slice(i * height // h, -(-(i + 1) * height // h))
            columns = slice(j * width // w, -(-(j + 1) * width // w))
            wanted.append(image[rows, columns].flatten(0, 1).mean(0))
    made = make("projector", "average_pool").resample(tokens, h * w)
    assert made.grid_out == (1, h, w) and torch.allclose(made.x[0], torch.stack(wanted), atol=1e-5)
    assert made.position[0].unique().numel() == h * w


def test_on_a_divisor_the_mean_of_the_image_stays(tiny):
    tokens = tiny(n=64, grid=(1, 8, 8))
    made = make("projector", "average_pool").resample(tokens, 16)
    assert torch.allclose(made.x.mean(1), tokens.x.mean(1), atol=1e-6)


def test_frames_are_pooled_one_by_one(grid_of):
    made = make("projector", "average_pool").resample(grid_of(range(8), 2, 2, 2), 2)
    assert made.x.flatten().tolist() == [1.5, 5.5] and made.grid_out == (2, 1, 1)
    assert made.position.tolist() == [[0, 4]]


@pytest.mark.parametrize(("side", "sides"), [(24, (24, 21, 17, 12, 8, 6)), (27, (27, 23, 19, 14, 9, 7))])
def test_the_grids_of_the_usual_ratios_are_reachable(side, sides):
    reachable = make("projector", "average_pool").reachable((1, side, side))
    assert {s * s for s in sides} <= set(reachable)


def test_whole_cells_drop_what_fills_none(grid_of):
    pool = make("projector", "average_pool", cells="whole")
    made = pool.resample(grid_of(range(25), 1, 5, 5), 4)
    assert made.x.flatten().tolist() == [3, 5, 13, 15] and made.grid_out == (1, 2, 2)
    assert pool.resample(grid_of(range(36), 1, 6, 6), 9).x.flatten().tolist()[:4] == [3.5, 5.5, 7.5, 15.5]
    assert 13 * 13 in pool.reachable((1, 27, 27)) and 14 * 14 not in pool.reachable((1, 27, 27))
    assert pool.reachable((2, 1, 6)) == [2, 4, 6, 12]  # a single row fills a cell of any height


def test_one_whole_cell_is_the_mean_of_all(grid_of):
    made = make("projector", "average_pool", cells="whole").resample(grid_of(range(15), 1, 3, 5), 1)
    assert made.x.item() == 7


def test_an_unknown_kind_of_cells_is_refused():
    with pytest.raises(ValueError, match="average_pool: cells 'half' is neither 'overlapping' nor 'whole'"):
        make("projector", "average_pool", cells="half")


def test_tokens_that_are_no_whole_grid_are_refused(tiny):
    tokens = dataclasses.replace(tiny(n=10), grid=(1, 3, 4))
    with pytest.raises(ValueError, match="10 tokens are not a whole 1 x 3 x 4 grid"):
        make("projector", "average_pool").resample(tokens, 6)

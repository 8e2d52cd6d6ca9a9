import pytest
import torch

from foveate.compressors.blocks import (
    block_counts,
    block_of,
    padded,
    places_in_blocks,
    places_in_cells,
    shuffled,
)

pytestmark = pytest.mark.fast


def test_blocks_of_four_by_four_places():
    assert places_in_blocks((4, 4), (2, 2)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_blocks_over_the_border_have_fewer_places():
    assert places_in_blocks((3, 3), (2, 2)).tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]


def test_cells_of_five_by_five_places_share_the_middle():
    wanted = [[5 * row + column for row in rows for column in columns] for rows, columns in (
        ((0, 1, 2), (0, 1, 2)),
        ((0, 1, 2), (2, 3, 4)),
        ((2, 3, 4), (0, 1, 2)),
        ((2, 3, 4), (2, 3, 4)),
    )]  # fmt: skip
    assert places_in_cells((5, 5), (2, 2)).tolist() == wanted


@pytest.mark.parametrize(("size", "cells"), [((5, 7), (3, 4)), ((4, 4), (4, 4)), ((3, 5), (1, 1)), ((6, 4), (3, 2))])
def test_means_over_the_places_of_cells_are_adaptive_pooling(size, cells):
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0))
    places = places_in_cells(size, cells)
    values = x.flatten()[places.clamp(min=0)].masked_fill(places < 0, 0).sum(1) / (places >= 0).sum(1)
    wanted = torch.nn.functional.adaptive_avg_pool2d(x[None, None], cells).flatten()
    assert torch.allclose(values, wanted, atol=1e-6)


def test_a_count_tells_its_block():
    squares = [(s, s) for s in (1, 2, 3, 4)]
    assert block_counts(squares, (1, 24, 24)) == [36, 64, 144, 576]
    assert block_counts(squares, (1, 27, 27)) == [49, 81, 196, 729]
    assert block_counts(squares, (3, 4, 4)) == [3, 12, 48]  # blocks of 3 and 2 both leave 2 x 2: the smaller
    assert [block_of(squares, 729, count) for count in (729, 196, 81, 49)] == squares
    assert block_of(squares, 729, 1) is None
    assert block_counts(squares[1:], (1, 1, 9)) == [5] and block_counts(squares[1:], (1, 1, 1)) == [1]


def test_the_border_is_repeated_until_blocks_fill_it():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    assert padded(maps, (2, 2)).flatten().tolist() == [0, 1, 2, 2, 3, 4, 5, 5]
    wide = shuffled(maps, (2, 2))
    assert wide.shape == (1, 4, 1, 2) and wide[0, :, 0].T.tolist() == [[0, 1, 3, 4], [2, 2, 5, 5]]

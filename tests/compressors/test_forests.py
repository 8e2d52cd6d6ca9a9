"""Spanning forests tell what is connected at every threshold."""

import pytest
import torch

from foveate.compressors.clusters import components
from foveate.compressors.forests import pointed, spanning
from foveate.compressors.matching import cosine

pytestmark = pytest.mark.fast

ALL = torch.ones(1, 1, 1, dtype=torch.bool)


def graph(n, edges):
    """(1, n, n) weights, -1 elsewhere."""
    weight = torch.full((n, n), -1.0)
    for i, j, value in edges:
        weight[i, j] = weight[j, i] = value
    return weight.unsqueeze(0)


def test_of_a_square_with_a_diagonal_the_three_heaviest_edges_that_close_no_circle_stay():
    square = graph(4, [(0, 1, 0.5), (1, 2, 0.75), (2, 3, 0.25), (3, 0, 0.125), (0, 2, 0.625)])
    forest = spanning(square, ALL.expand(1, 4, 4))
    assert forest.weight.tolist() == [[0.75, 0.625, 0.25, -torch.inf]]
    assert forest.ends[:, 0, :3].tolist() == [[1, 0, 2], [2, 2, 3]]
    taus = [torch.tensor([[tau]]) for tau in (0.75, 0.7, 0.6, 0.2)]
    assert [forest.parts(tau).tolist() for tau in taus] == [[[0, 1, 2, 3]], [[0, 1, 1, 3]], [[0, 0, 0, 3]], [[0] * 4]]


def test_an_edge_within_a_tree_may_be_lighter_than_one_that_leaves_it():
    path = graph(5, [(0, 1, 0.5), (1, 2, 0.875), (1, 3, 0.75), (3, 4, 1.0)])  # node 0 is left alone above .5
    forest = spanning(path, ALL.expand(1, 5, 5))
    assert forest.parts(torch.tensor([[0.6]])).tolist() == [[0, 1, 1, 1, 1]]


def test_pairs_that_are_not_allowed_join_nothing():
    allowed = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool).unsqueeze(0)
    forest = spanning(torch.ones(1, 3, 3), allowed)
    assert forest.weight.tolist() == [[1, -torch.inf, -torch.inf]]
    assert forest.parts(torch.tensor([[-2.0]])).tolist() == [[0, 0, 2]]
    assert spanning(torch.ones(1, 1, 1), ALL).weight.tolist() == [[-torch.inf]]


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_parts_are_the_components_at_every_threshold_however_many_edges_are_equal(digits):
    generator = torch.Generator().manual_seed(digits)
    x = torch.randn(3, 40, 4, generator=generator)
    likeness = cosine(x, x)
    likeness = (likeness * 8).round() / 8 if digits == 1 else likeness if digits else torch.full_like(likeness, 0.5)
    allowed = torch.rand(3, 40, 40, generator=generator) > torch.tensor([0.0, 0.5, 0.97]).view(3, 1, 1)
    allowed |= allowed.mT.clone()
    forest = spanning(likeness, allowed)
    for tau in (-2.0, -0.5, 0.0, 0.25, 0.5, 0.8, 1.0):
        label = components((likeness > tau) & allowed)
        assert torch.equal(forest.parts(torch.full((3, 1), tau)), label)
        assert (40 - (forest.weight > tau).sum(-1)).tolist() == [row.unique().numel() for row in label]
    for row in range(3):
        alone = spanning(likeness[row : row + 1], allowed[row : row + 1])
        assert torch.equal(alone.weight[0], forest.weight[row]) and torch.equal(alone.ends[:, 0], forest.ends[:, row])


def test_chains_of_pointers_end_where_one_points_at_itself():
    assert pointed(torch.tensor([[0, 0, 1, 2, 3, 5]])).tolist() == [[0, 0, 0, 0, 0, 5]]

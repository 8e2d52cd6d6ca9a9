import pytest
import torch
from torch.nn.functional import normalize

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 2, 4])])
def test_adds_the_token_farthest_from_those_chosen(tiny, count, kept):
    angles = torch.tensor([0.0, 10, 20, 60, 65]).deg2rad()  # nearest neighbours .0152 .0152 .0152 .0038 .0038 away
    x = torch.stack([angles.cos(), angles.sin()], -1).unsqueeze(0)
    tokens = tiny(n=5, grid=(1, 1, 5), x=x)
    assert make("outside", "diversity").reduce(tokens, count).anchor.tolist() == [kept]


def test_starts_from_the_token_whose_nearest_neighbour_is_farthest(tiny):
    x = torch.tensor([[[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1]]])
    tokens = tiny(n=5, grid=(1, 1, 5), x=x)
    assert make("outside", "diversity").reduce(tokens, 1).anchor.tolist() == [[4]]


def by_loops(x, count):
    """The greedy rule, pair by pair."""
    unit = normalize(x, dim=-1)
    distance = [[1 - float(a @ b) for b in unit] for a in unit]
    n = len(x)
    chosen = [max(range(n), key=lambda i: min(distance[i][j] for j in range(n) if j != i))]
    while len(chosen) < count:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(distance[i][j] for j in chosen)))
    return sorted(chosen)


@pytest.mark.parametrize("count", [1, 4, 9, 15])
def test_equals_the_greedy_rule_by_loops(tiny, count):
    tokens = tiny(n=15, grid=(1, 3, 5), batch=3)
    wanted = [by_loops(row, count) for row in tokens.x]
    assert make("outside", "diversity").reduce(tokens, count).anchor.tolist() == wanted


def test_equal_tokens_are_taken_once_each_from_the_lowest_index(tiny):
    tokens = tiny(n=6, grid=(1, 2, 3), x=torch.ones(1, 6, 3))
    assert make("outside", "diversity").reduce(tokens, 4).anchor.tolist() == [[0, 1, 2, 3]]


def test_lengths_do_not_matter(tiny):
    tokens = tiny(n=12)
    scaled = tiny(n=12, x=tokens.x * torch.arange(1, 13).view(1, 12, 1))
    method = make("outside", "diversity")
    assert torch.equal(method.reduce(tokens, 5).anchor, method.reduce(scaled, 5).anchor)


def test_a_single_token_is_kept(tiny):
    assert make("outside", "diversity").reduce(tiny(n=1, grid=(1, 1, 1)), 1).anchor.tolist() == [[0]]

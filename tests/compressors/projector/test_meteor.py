import dataclasses

import pytest
import torch

from foveate.compressors.matching import cosine
from foveate.compressors.quotas import shares
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_the_tokens_least_like_those_of_the_other_view_stay(tiny):
    x = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [0.5**0.5, 0.5**0.5]]])
    tokens = tiny(n=4, grid=(2, 1, 2), x=x)
    method = make("projector", "meteor")
    assert (-method.score(tokens))[0].tolist() == pytest.approx([1.7071, 0.7071, 1.0, 1.4142], abs=1e-4)
    assert method.reduce(tokens, 2).anchor.tolist() == [[1, 2]]


def test_equals_the_sums_over_pairs_of_views(tiny):
    tokens = tiny(n=30, grid=(3, 2, 5), batch=2)
    view = torch.arange(30) // 10
    pairs = cosine(tokens.x, tokens.x) * (view.unsqueeze(0) != view.unsqueeze(1))
    assert torch.allclose(-make("projector", "meteor").score(tokens), pairs.sum(-1), atol=1e-4)


def test_tokens_without_a_place_are_a_view_of_their_own(tiny):
    x = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [1, 0]]])
    tokens = tiny(n=4, grid=(2, 1, 1), x=x)
    tokens = dataclasses.replace(tokens, position=torch.tensor([[0, 1, -1, -1]]))
    assert (-make("projector", "meteor").score(tokens))[0].tolist() == [2, 0, 1, 1]


def test_a_budget_is_shared_by_rank():
    ranks = torch.tensor([[40.0, 20, 40], [41, 20, 40]])
    assert shares(ranks, torch.tensor([100, 100])).tolist() == [[40, 20, 40], [40, 20, 40]]

import dataclasses

import pytest
import torch

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def test_early_the_tokens_most_like_the_mean_go_first(tiny):
    x = torch.tensor([[[1.0, 0], [1, 0.1], [1, -0.1], [0, 1]]])
    tokens = tiny(n=4, grid=(1, 2, 2), x=x)
    method = make("encoder", "meteor")
    assert (-method.score(tokens))[0].tolist() == pytest.approx([0.9487, 0.9754, 0.9125, 0.3162], abs=1e-4)
    assert [method.reduce(tokens, count).anchor.tolist()[0] for count in (3, 2, 1)] == [[0, 2, 3], [2, 3], [3]]


def test_later_the_tokens_that_cls_attends_to_stay(tiny):
    heads = torch.tensor([[[0.1, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.6]]])  # means .1 .3 .2 .4
    for site in (1, 2):
        tokens = dataclasses.replace(tiny(n=4, grid=(1, 2, 2), cls_attention=heads), site=site)
        assert make("encoder", "meteor").reduce(tokens, 2).anchor.tolist() == [[1, 3]]


@pytest.mark.parametrize(("depth", "blocks"), [(23, [7, 15, 22]), (24, [7, 16, 23]), (6, [1, 3, 5]), (2, [0, 1])])
def test_tokens_go_at_the_end_of_each_third(depth, blocks):
    method = make("encoder", "meteor")
    assert method.blocks(depth) == blocks
    assert method.signals(depth) == {Signal("cls_attention", block) for block in blocks}


def test_counts_fall_geometrically():
    assert make("encoder", "meteor").sites(576, 72, 23) == [(7, 288), (15, 144), (22, 72)]


@pytest.mark.parametrize(("count", "sites"), [(11, [(1, 11)]), (10, [(1, 11), (5, 10)]), (1, [(1, 5), (3, 2), (5, 1)])])
def test_the_first_site_always_removes_something(count, sites):
    assert make("encoder", "meteor").sites(12, count, 6) == sites


def test_equal_tokens_go_by_index(tiny):
    tokens = tiny(n=4, grid=(1, 2, 2), x=torch.ones(1, 4, 3))
    assert make("encoder", "meteor").reduce(tokens, 2).anchor.tolist() == [[0, 1]]

import pytest
import torch

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def test_halving_rounds_down_from_the_original_number():
    halves = make("prefill", "pyramiddrop", share=0.5)
    assert halves.sites(576, 72, 32) == [(8, 288), (16, 144), (24, 72)]
    assert halves.sites(10, 1, 32) == [(8, 5), (16, 2), (24, 1)]
    assert halves.sites(10, 6, 32) == [(8, 6)]  # never fewer than asked for


def test_a_share_outside_its_range_is_named():
    with pytest.raises(ValueError, match=r"pyramiddrop: share 1.5 is outside \(0, 1\]"):
        make("prefill", "pyramiddrop", share=1.5)


def test_an_eighth_gives_the_published_counts_and_their_mean():
    sites = make("prefill", "pyramiddrop").sites(576, 72, 32)
    assert sites == [(8, 288), (16, 144), (24, 72)]
    entering = [576, 576, 576, 576]
    for stage, (_, count) in enumerate(sites, start=1):
        entering[stage] = count
    assert sum(entering) / 4 == 270  # mean over the layers: four stages of eight


@pytest.mark.parametrize(
    ("n", "count", "depth", "sites"),
    [
        (64, 8, 8, [(2, 32), (4, 16), (6, 8)]),
        (576, 72, 28, [(7, 288), (14, 144), (21, 72)]),
        (64, 32, 8, [(2, 50), (4, 40), (6, 32)]),
        (10, 1, 32, [(8, 4), (16, 2), (24, 1)]),
        (3, 2, 32, [(8, 2)]),
        (64, 16, 2, [(1, 16)]),
        (64, 16, 3, [(1, 32), (2, 16)]),
    ],
)
def test_the_last_site_leaves_the_count_and_sites_that_remove_nothing_are_left_out(n, count, depth, sites):
    assert make("prefill", "pyramiddrop").sites(n, count, depth) == sites


def test_each_boundary_reads_its_own_layer():
    method = make("prefill", "pyramiddrop")
    assert method.signals(8) == {Signal("last_query", layer) for layer in (2, 4, 6)}
    assert method.signals_at(4, 8) == {Signal("last_query", 4)}


def test_one_boundary_at_two_has_fastv_s_budget_but_reads_the_next_layer():
    method, fastv = make("prefill", "pyramiddrop", boundaries=((2,), 32)), make("prefill", "fastv")
    assert method.sites(576, 288, 32) == fastv.sites(576, 288, 32) == [(2, 288)]
    assert method.signals(32) == {Signal("last_query", 2)} and fastv.signals(32) == {Signal("last_query", 1)}


def test_keeps_what_the_last_query_attends_to(tiny):
    heads = torch.tensor([[[0.1, 0.4, 0.1, 0.2], [0.3, 0.1, 0.1, 0.3]]])
    tokens = tiny(n=4, grid=(1, 2, 2), last_query=heads)
    assert make("prefill", "pyramiddrop").reduce(tokens, 2).anchor.tolist() == [[1, 3]]


@pytest.mark.parametrize("layers", [(), (8, 8), (16, 8), (0, 8), (8, 32)])
def test_wrong_boundaries_are_named(layers):
    with pytest.raises(ValueError, match=r"boundaries .* are not ascending within 1\.\.31"):
        make("prefill", "pyramiddrop", boundaries=(layers, 32))

"""Qwen-VL's resampler: places, independence of queries, its start and its published size."""

import pytest
import torch

from foveate.compressors.blocks import places_in_cells
from foveate.compressors.learned import Widths, untrained
from foveate.compressors.networks import sincos, stretched
from foveate.compressors.projector.qwen_resampler import SHARPNESS
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

GRID = (1, 4, 4)


def method(grid=GRID, widths=(8, 12), projector=(), **settings):
    return untrained(make("projector", "qwen_resampler", **settings), Widths(*widths, 0, 4, 4, grid), projector)


def test_places_of_two_by_two_in_eight_features():
    column, row = [0.841, 0.01, 0.54, 1], [0, 0, 1, 1]
    wanted = [row + row, column + row, row + column, column + column]
    assert torch.allclose(sincos(2, 2, 8), torch.tensor(wanted), atol=1e-3)


def test_what_one_query_is_does_not_concern_the_others(tiny):
    tokens = tiny(n=16, grid=GRID)
    one, other = method(), method()
    for each in (one, other):
        torch.nn.init.ones_(each.network.norm_q.weight)
    other.network.queries.data[5, 0] += 3
    change = (other.resample(tokens, 16).x - one.resample(tokens, 16).x).abs().amax(-1)[0]
    assert change[5] > 1e-3 and (change[torch.arange(16) != 5] < 1e-6).all()


@pytest.mark.parametrize("published", [False, True])
def test_equal_tokens_make_equal_tokens(published, tiny):
    same = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 16, 8)
    made = method(published=published).resample(tiny(n=16, grid=GRID, x=same), 4).x
    assert torch.allclose(made, made[:, :1].expand_as(made), atol=1e-5)


@pytest.mark.parametrize(("sharpness", "mass"), [(40, 0.18), (160, 0.53), (320, 0.76), (640, 0.94)])
def test_the_start_reads_the_own_cell(sharpness, mass):
    attention = method((1, 24, 24), (1152, 896)).network.attention
    for part in (attention.q, attention.k):
        part.weight.data.mul_((sharpness / SHARPNESS) ** 0.5)
    assert attention.heads == 7
    places = sincos(8, 8, 896)
    cell = torch.zeros(576, 64)
    cell[places_in_cells((24, 24), (8, 8)), torch.arange(64)[:, None]] = 1
    value = torch.nn.functional.pad(cell, (0, 64)).repeat(1, 7)  # in each head feature c is 1 where cell c is
    with torch.no_grad():
        read = attention(places[None], stretched(places, (8, 8), (24, 24))[None], value[None])[0]
    own = read.view(64, 7, 128)[:, :, :64].diagonal(dim1=0, dim2=2).mean(-1)  # of each head
    assert own.mean().item() == pytest.approx(mass, abs=0.02) and own.amax() - own.amin() < 0.2


def test_the_start_is_near_the_mean_of_each_cell(tiny):
    grid = (1, 8, 8)
    start = method(grid, (64, 64))
    start.network.project = torch.nn.Linear(64, 64, bias=False)
    start.network.project.weight.data = torch.eye(64)
    tokens = tiny(n=64, grid=grid, dim=64)
    own = tokens.x[:, places_in_cells((8, 8), (4, 4))].mean(2)
    made = start.resample(tokens, 16).x
    likeness = torch.nn.functional.cosine_similarity(made[:, :, None], own[:, None], dim=-1)[0]
    assert (likeness.argmax(-1) == torch.arange(16)).all() and likeness.diagonal().mean() > 0.7


def test_matrices_of_the_projector_are_taken_over_where_they_fit():
    weights = torch.randn(12, 8), torch.randn(12, 12)
    projector = tuple((weight, torch.zeros(12)) for weight in weights)
    network = method(projector=projector).network
    assert torch.equal(network.enter.weight, weights[0]) and torch.equal(network.project.weight, weights[1])
    assert not torch.equal(method(projector=projector, published=True).network.enter.weight, weights[0])
    odd = ((torch.zeros(5, 8), torch.zeros(5)), (torch.zeros(12, 5), torch.zeros(12)))
    assert (method(projector=odd).network.enter.weight != 0).all()


def test_other_counts_interpolate_the_queries(tiny):
    coarse = method((1, 6, 8), queries=12)
    assert coarse.network.lattice == (3, 4) and coarse.reachable((1, 6, 8))[-1] == 48
    made = coarse.resample(tiny(n=48, grid=(1, 6, 8)), 48)
    assert made.grid_out == (1, 6, 8) and made.x.shape == (1, 48, 12)
    assert coarse.resample(tiny(n=30, grid=(1, 5, 6)), 1).grid_out == (1, 1, 1)


def test_the_size_of_the_published_module():
    with torch.device("meta"):
        network = make("projector", "qwen_resampler", published=True).build(Widths(1664, 4096, 0, 48, 32, (1, 32, 32)))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    attention = network.queries.numel() + sizes["enter"] + sizes["attention"] + sizes["norm_q"] + sizes["norm_kv"]
    assert attention == 256 * 4096 + 1664 * 4096 + 4 * 4096**2 + 4 * 4096 + 4 * 4096
    assert round(attention / 1e6, 1) == 75.0
    assert sizes["project"] == 4096**2 and sizes["norm_out"] == 2 * 4096
    assert network.lattice == (16, 16) and network.attention.heads == 32


@pytest.mark.parametrize(("queries", "millions"), [(64, 4.3), (256, 4.5)])
def test_the_size_of_the_light_module(queries, millions):
    with torch.device("meta"):
        network = make("projector", "qwen_resampler", queries=queries, published=True).build(
            Widths(1152, 896, 0, 26, 24, (1, 24, 24))
        )
    behind = network.project.weight.numel() + sum(p.numel() for p in network.norm_out.parameters())
    assert round((sum(p.numel() for p in network.parameters()) - behind) / 1e6, 1) == millions


def test_what_cannot_be_is_refused(tiny):
    with pytest.raises(ValueError, match="qwen_resampler: queries 0 is below 1"):
        make("projector", "qwen_resampler", queries=0)
    with pytest.raises(ValueError, match="qwen_resampler: places for 6 features: must be a multiple of 4"):
        method(widths=(8, 6))
    with pytest.raises(ValueError, match="qwen_resampler: takes one frame, got 2"):
        method((1, 2, 2)).resample(tiny(n=8, grid=(2, 2, 2)), 4)

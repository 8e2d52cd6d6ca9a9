"""LLaVA-STF: grouping, its start, what is read, and its published size."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, gelu

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.projector.llava_stf import grouped
from foveate.compressors.registry import make
from foveate.compressors.trial import for_method

pytestmark = pytest.mark.fast


def method(grid, projector=(), widths=(8, 12), **settings):
    return untrained(make("projector", "llava_stf", **settings), Widths(*widths, 0, 4, 4, grid), projector)


def test_the_tokens_of_a_block_stand_channel_by_channel():
    maps = torch.arange(8.0).view(1, 2, 2, 2).permute(0, 3, 1, 2)  # channels (0, 1), (2, 3), (4, 5), (6, 7)
    assert grouped(maps, (2, 2)).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_blocks_of_a_square_are_in_raster_order():
    made = grouped(torch.arange(576.0).view(1, 1, 24, 24), (2, 2)).view(144, 4)
    for i, j in ((0, 0), (3, 7), (11, 11)):
        first = 48 * i + 2 * j
        assert made[12 * i + j].tolist() == [first, first + 1, first + 24, first + 25]
    assert make("projector", "llava_stf").reachable((1, 24, 24)) == [36, 64, 144]
    assert make("projector", "llava_stf", sides=(1,)).reachable((1, 24, 24)) == [576]


def test_it_starts_as_pooling_before_the_projector(tiny):
    generator = torch.Generator().manual_seed(1)
    w1, b1, w2, b2 = (torch.randn(*shape, generator=generator) for shape in ((12, 8), (12,), (12, 12), (12,)))
    which = method((2, 12, 12), ((w1, b1), (w2, b2)))
    tokens = for_method(tiny(n=288, grid=(2, 12, 12)), which)
    for side in (2, 3, 4):
        made = which.resample(tokens, 288 // side**2)
        low = avg_pool2d(tokens.x.view(2, 12, 12, 8).permute(0, 3, 1, 2), side).flatten(2).mT.reshape(1, -1, 8)
        assert torch.allclose(made.x, gelu(low @ w1.T + b1) @ w2.T + b2, atol=1e-4)
        assert made.grid_out == (2, 12 // side, 12 // side)


def test_an_odd_grid_repeats_its_border(tiny):
    which = method((1, 3, 3))
    tokens = for_method(tiny(n=9, grid=(1, 3, 3)), which)
    corner = which.network.mlp(tokens.x[0, 8])
    assert torch.allclose(which.resample(tokens, 4).x[0, 3], corner, atol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
def test_gradients_reach_the_slices_of_all_depths(residual, tiny):
    which = method((1, 4, 4), residual=residual)
    for layer in (which.network.depths.layers[1], which.network.second):
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    tokens = for_method(tiny(n=16, grid=(1, 4, 4)), which)
    which.resample(tokens, 4).x.square().sum().backward()
    slices = which.network.depths.layers[0].weight.grad.unflatten(1, (8, 8))
    assert (slices.abs().sum(dim=(0, 2)) > 0).all()


def test_states_are_read_behind_eight_depths():
    asked = make("projector", "llava_stf").signals(23)
    assert [s.layer for s in sorted(asked, key=lambda s: s.tag)] == [20, 17, 14, 11, 8, 5, 2]  # the last block beside
    assert sorted(s.layer for s in make("projector", "llava_stf").signals(12)) == [1, 3, 4, 6, 7, 9, 10]


def test_depths_stand_in_the_published_order(tiny):
    which = method((1, 2, 2), residual=False, sides=(1,))
    first = which.network.depths.layers[0]
    torch.nn.init.zeros_(first.weight)
    first.weight.data[:, 8 * 7 :] = 1  # reads the shallowest depth alone
    tokens = for_method(tiny(n=4, grid=(1, 2, 2)), which)
    for key in ("x", "block_states.level0", "block_states.level5", "block_states.level6"):
        signals = {k: v * (-2 if k == key else 1) for k, v in tokens.signals.items()}
        other = type(tokens)(**{**vars(tokens), "x": tokens.x * (-2 if key == "x" else 1), "signals": signals})
        alike = torch.allclose(which.resample(other, 4).x, which.resample(tokens, 4).x, atol=1e-7)
        assert alike == (key != "block_states.level6")


def test_the_sizes_of_the_published_module():
    with torch.device("meta"):
        published = make("projector", "llava_stf", sides=(2,), residual=False)
        network = published.build(Widths(1024, 4096, 0, 23, 32, (1, 24, 24)))
    assert round(sum(p.numel() for p in network.depths.parameters()) / 1e6, 1) == 37.8
    rest = [*network.first.parameters(), *network.second.parameters()]
    assert round(sum(p.numel() for p in rest) / 1e6, 1) == 134.2 and network.mlp is None


@pytest.mark.parametrize("sides", [(), (0, 2)])
def test_sides_out_of_range_are_refused(sides):
    with pytest.raises(ValueError, match="llava_stf: sides"):
        make("projector", "llava_stf", sides=sides)

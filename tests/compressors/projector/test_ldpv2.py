"""LDPv2: what its convolution adds to pooling, by hand."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def plain(grid, features=1):
    """LDPv2 whose projector hands features on as they are: GELU of x + 100 is x + 100."""
    one, hundred = torch.eye(features), torch.full((features,), 100.0)
    widths = Widths(features, features, 0, 4, 4, grid)
    return untrained(make("projector", "ldpv2"), widths, ((one, hundred), (one, -hundred)))


def line(values):
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_a_convolution_of_zeros_leaves_pooling_behind_the_projector(tiny):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(6, 8, generator=generator), torch.randn(6, generator=generator)]
    weights += [torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)]
    projector = tuple(zip(weights[::2], weights[1::2], strict=True))
    method = untrained(make("projector", "ldpv2"), Widths(8, 6, 0, 4, 4, (1, 4, 4)), projector)
    tokens = tiny(n=16, grid=(1, 4, 4), batch=2)
    hidden = torch.nn.functional.gelu(tokens.x @ weights[0].T + weights[1])
    projected = (hidden @ weights[2].T + weights[3]).view(2, 4, 4, 6).permute(0, 3, 1, 2)
    expected = adaptive_avg_pool2d(projected, (2, 2)).flatten(2).transpose(1, 2)
    assert torch.allclose(method.resample(tokens, 4).x, expected, atol=1e-5)


def test_a_mean_kernel_adds_a_ninth_of_the_sum_of_each_window(tiny):
    method = plain((1, 2, 2))
    method.network.place.weight.data.fill_(1 / 9)
    made = method.resample(tiny(n=4, grid=(1, 2, 2), x=line([1, 2, 3, 4])), 4)
    assert made.x.flatten().tolist() == pytest.approx([2.111, 3.111, 4.111, 5.111], abs=1e-3)


def test_a_constant_map_doubles_inside_and_gains_less_at_the_border(tiny):
    method = plain((1, 3, 3))
    method.network.place.weight.data.fill_(1 / 9)
    made = method.resample(tiny(n=9, grid=(1, 3, 3), x=torch.full((1, 9, 1), 3.0)), 9).x.flatten()
    assert made[4].item() == pytest.approx(6, abs=1e-3)
    assert made[0].item() == pytest.approx(3 + 4 / 3, abs=1e-3) and made[1].item() == pytest.approx(5, abs=1e-3)


def test_frames_of_a_video_are_pooled_each_by_itself(tiny):
    made = plain((1, 2, 2)).resample(tiny(n=8, grid=(2, 2, 2), x=line([1, 2, 3, 4, 10, 20, 30, 40])), 2)
    assert made.x.flatten().tolist() == pytest.approx([2.5, 25], abs=1e-3) and made.grid_out == (2, 1, 1)


def test_the_size_of_the_published_projector():
    network = make("projector", "ldpv2").build(Widths(1024, 2048, 0, 23, 24, (1, 24, 24)))
    assert sum(p.numel() for p in network.parameters()) == 6_316_032
    assert sum(p.numel() for p in network.place.parameters()) == 20_480


def test_a_projector_of_other_shape_is_not_taken_over():
    method = make("projector", "ldpv2")
    other = ((torch.zeros(5, 8), torch.zeros(5)), (torch.zeros(6, 5), torch.zeros(6)))
    assert method.build(Widths(8, 6, 0, 4, 4, (1, 2, 2)), other).mlp.layers[0].weight.abs().sum() > 0

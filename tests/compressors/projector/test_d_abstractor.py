import math

import pytest
import torch

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.projector.d_abstractor import Deformable, Layer, points
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def own(grid, width=8, out=6, **fields):
    return untrained(make("projector", "d_abstractor", **fields), Widths(width, out, 0, 4, 4, grid))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def reading(width=8, heads=8):
    """Deformable attention whose values and output are the map itself."""
    attention = Deformable(width, heads, 4)
    for part in (attention.value, attention.out):
        torch.nn.init.eye_(part.weight)
    return attention


def at(x, y, size):
    """A reference point in the middle of a patch."""
    return torch.tensor([[(x + 0.5) / size[1], (y + 0.5) / size[0]]])


def test_reference_points_span_the_middles_of_the_first_and_last_patches():
    lattice = points((9, 9), (16, 16))
    assert lattice[:3, 0].tolist() == pytest.approx([0.03125, 0.1484375, 0.265625]) and lattice[0, 1] == 0.03125
    assert lattice[8].tolist() == [0.96875, 0.03125] and lattice[-1].tolist() == [0.96875, 0.96875]
    assert points((2, 3), (4, 6))[:, 0].tolist() == pytest.approx([1 / 12, 0.5, 11 / 12] * 2)
    assert points((1, 1), (16, 16)).tolist() == [[0.5, 0.5]]


def test_at_first_heads_look_in_eight_directions_one_to_four_cells_away():
    offset = Deformable(8, 8, 4).offset
    rings = offset.bias.view(8, 4, 2)
    assert offset.weight.abs().sum() == 0
    assert torch.allclose(rings[0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]), atol=1e-6)
    assert torch.allclose(rings[1], torch.tensor([[1.0, 1], [2, 2], [3, 3], [4, 4]]), atol=1e-6)
    assert torch.allclose(rings[2], torch.tensor([[0.0, 1], [0, 2], [0, 3], [0, 4]]), atol=1e-6)
    assert torch.allclose(rings.abs().amax(-1), torch.arange(1.0, 5).expand(8, 4))
    angle = torch.atan2(rings[..., 1], rings[..., 0])[:4, 0]
    assert torch.allclose(angle, torch.arange(4) * math.pi / 4, atol=1e-6)
    assert torch.allclose(rings[4:], -rings[:4], atol=1e-6)


def test_at_first_the_first_head_averages_the_four_cells_to_the_right():
    size = (7, 12)
    maps = torch.randn(1, *size, 8)
    seen = reading()(torch.randn(1, 1, 8), at(3, 2, size), maps)
    assert seen[0, 0, 0].item() == pytest.approx(maps[0, 2, 4:8, 0].mean().item(), abs=1e-5)
    assert seen[0, 0, 2].item() == pytest.approx(maps[0, 3:7, 3, 2].mean().item(), abs=1e-5)  # downwards
    edge = reading()(torch.randn(1, 1, 8), at(10, 2, size), maps)  # one cell is left, zeros beyond
    assert edge[0, 0, 0].item() == pytest.approx(maps[0, 2, 11, 0].item() / 4, abs=1e-5)


def test_the_points_follow_a_map_that_moves_with_them():
    size, query = (14, 14), torch.randn(1, 1, 8)
    maps = torch.zeros(1, *size, 8)
    maps[:, 4:10, 4:10] = torch.randn(1, 6, 6, 8)
    moved = maps.roll(1, dims=2)
    attention = reading()
    here, there = (attention(query, at(6 + step, 6, size), m) for step, m in ((0, maps), (1, moved)))
    assert torch.allclose(here, there, atol=1e-5) and here.abs().sum() > 0


def test_points_between_patches_are_interpolated_and_weights_are_shares():
    attention, size = reading(1, 1), (1, 4)
    torch.nn.init.zeros_(attention.offset.bias)
    maps = torch.tensor([0.0, 10, 20, 40]).view(1, 1, 4, 1)
    assert attention(torch.zeros(1, 1, 1), at(2.25, 0, size), maps).item() == pytest.approx(25)
    attention.offset.bias.data.copy_(torch.tensor([[-2.0, 0], [-1, 0], [0, 0], [1, 0]]).flatten())
    attention.weight.bias.data.copy_(torch.tensor([1.0, 2, 3, 4]).log())
    assert attention(torch.zeros(1, 1, 1), at(2, 0, size), maps).item() == pytest.approx(
        (10 * 2 + 20 * 3 + 40 * 4) / 10
    )


def test_a_layer_by_hand():
    torch.manual_seed(0)
    layer = Layer(8, 2, 4)
    state, place, maps, reference = (
        torch.randn(1, 3, 8),
        torch.randn(1, 3, 8),
        torch.randn(1, 4, 5, 8),
        torch.rand(3, 2),
    )
    norm = torch.nn.functional.layer_norm
    a = norm(state + layer.own(state + place, state + place, state), (8,))
    b = norm(a + layer.cross(a + place, reference, maps), (8,))
    c = norm(b + layer.down(layer.up(b).clamp(min=0)), (8,))
    assert torch.allclose(layer(state, place, reference, maps), c, atol=1e-5)


def test_counts_come_out_as_grids_whatever_the_lattice_kept(tiny):
    method = own((1, 6, 6), layers=2, queries=9)
    assert method.network.lattice == (3, 3) and method.network.shift.shape == (9, 2)
    for grid, count, wanted in (((1, 6, 6), 9, (1, 3, 3)), ((1, 6, 6), 16, (1, 4, 4)), ((1, 5, 7), 8, (1, 2, 4))):
        made = method.resample(tiny(n=grid[1] * grid[2], grid=grid), count)
        assert made.grid_out == wanted and made.x.shape == (1, count, 6)


def test_at_first_each_query_hands_on_what_stands_near_its_point(tiny):
    projector = ((torch.randn(8, 8), torch.randn(8)), (torch.randn(6, 8), torch.randn(6)))
    widths = Widths(8, 6, 0, 4, 4, (1, 6, 6))
    network = make("projector", "d_abstractor", layers=1, heads=1).build(widths, projector)
    maps = torch.randn(1, 8, 6, 6)
    made = network(maps, (6, 6))[0, :, 2, 2]
    seen = maps + network.places.T.view(1, 8, 6, 6)
    around = seen[0, :, 2, 2:5] @ torch.tensor([0.125, 0.5, 0.375])  # points 0.5, 1, 1.5 and 2 to the right
    first, second, third = network.layers[0].norms
    (w1, b1), (w2, b2) = projector
    state = third(second(first(network.queries[14]) + around))
    assert torch.allclose(made, w2 @ (w1 @ state + b1) + b2, atol=1e-4)
    assert make("projector", "d_abstractor", published=True).build(widths).layers[0].down.weight.abs().sum() > 0


def test_sizes():
    layer, method = 8_501_344, make("projector", "d_abstractor", width=1024, layers=1)
    published = method.build(Widths(1024, 4096, 0, 4, 4, (1, 16, 16)))
    small = method.build(Widths(1152, 896, 0, 4, 4, (1, 27, 27)))
    assert published.lattice == (12, 12) and parameters(published.layers) == layer
    assert parameters(published) == layer + (256 + 144) * 1024 + 2 * 144 + 1024 * 4096 + 4096
    assert (parameters(published) + 5 * layer) / 1e6 == pytest.approx(55.6, abs=0.05)
    assert (parameters(small) + 5 * layer) / 1e6 == pytest.approx(54.0, abs=0.05)


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="d_abstractor: .*'heads': 0.*each must be 1 or more"):
        make("projector", "d_abstractor", heads=0)
    with pytest.raises(ValueError, match="d_abstractor: width 12 is no multiple of 8 heads"):
        own((1, 4, 4), width=12)
    with pytest.raises(ValueError, match="d_abstractor: takes one frame, got 2"):
        own((1, 2, 2), layers=1).resample(tiny(n=8, grid=(2, 2, 2)), 4)

import dataclasses

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, gelu, silu

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.networks import Bottleneck
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def own(grid, width=8, out=6, projector=(), **fields):
    return untrained(make("projector", "c_abstractor", **fields), Widths(width, out, 0, 4, 4, grid), projector)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def projector_of(width, out):
    generator = torch.Generator().manual_seed(1)
    shapes = ((out, width), (out,), (out, out), (out,))
    w1, b1, w2, b2 = (torch.randn(shape, generator=generator) for shape in shapes)
    return ((w1, b1), (w2, b2))


def pooled(tokens, cells):
    _, height, width = tokens.grid
    maps = tokens.x.view(-1, height, width, tokens.x.shape[-1]).permute(0, 3, 1, 2)
    return adaptive_avg_pool2d(maps, cells).flatten(2).mT


def test_at_first_it_is_pooling_before_the_projector(tiny):
    (w1, b1), (w2, b2) = projector = projector_of(8, 6)
    tokens, method = tiny(n=35, grid=(1, 5, 7), batch=2), own((1, 5, 7), projector=projector)
    made = method.resample(tokens, 8)
    assert made.grid_out == (1, 2, 4)
    assert torch.allclose(made.x, gelu(pooled(tokens, (2, 4)) @ w1.T + b1) @ w2.T + b2, atol=1e-4)


def test_published_without_blocks_it_is_a_pool_and_an_mlp_with_silu(tiny):
    tokens, method = tiny(n=16, grid=(1, 4, 4)), own((1, 4, 4), depth=0, published=True)
    torch.nn.init.zeros_(method.network.places)
    first, second = method.network.mlp.layers
    assert torch.allclose(method.resample(tokens, 9).x, second(silu(first(pooled(tokens, (3, 3))))), atol=1e-5)


def test_256_patches_become_144_tokens(tiny):
    made = own((1, 16, 16), depth=1).resample(tiny(n=256, grid=(1, 16, 16)), 144)
    assert made.x.shape == (1, 144, 6) and made.grid_out == (1, 12, 12)


def test_without_the_gate_a_token_reaches_its_neighbours_alone(tiny):
    method = own((1, 8, 8), depth=1, published=True)
    for block in (*method.network.before, *method.network.behind):
        torch.nn.init.zeros_(block.excite.weight)
    tokens = tiny(n=64, grid=(1, 8, 8))
    for place, wanted in ((0, {0, 1, 4, 5}), (8 * 5 + 5, {5, 6, 7, 9, 10, 11, 13, 14, 15}), (8 * 4 + 1, None)):
        x = tokens.x.clone()
        x[0, place] += 5
        apart = method.resample(dataclasses.replace(tokens, x=x), 16).x - method.resample(tokens, 16).x
        changed = set(apart[0].abs().amax(-1).gt(1e-6).nonzero().flatten().tolist())
        # one cell further before the pool, one cell of the lattice behind it
        rows = {r // 2 for r in range(place // 8 - 1, place // 8 + 2) if 0 <= r < 8}
        columns = {c // 2 for c in range(place % 8 - 1, place % 8 + 2) if 0 <= c < 8}
        near = {
            4 * r + c
            for r in range(min(rows) - 1, max(rows) + 2)
            for c in range(min(columns) - 1, max(columns) + 2)
            if 0 <= r < 4 and 0 <= c < 4
        }
        assert changed == near and (wanted is None or changed == wanted)


def test_a_block_by_hand():
    torch.manual_seed(0)
    block = Bottleneck(8, 4, published=True)
    x = torch.randn(1, 1, 3, 3, 8)

    def norm(maps, layer):  # over channels, at each place
        mean, spread = maps.mean(1, keepdim=True), maps.var(1, correction=0, keepdim=True)
        scaled = (maps - mean) / (spread + 1e-5).sqrt()
        return scaled * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    def to(maps, layer):  # a convolution of 1 x 1
        return torch.nn.functional.conv2d(maps, layer.weight[:, :, None, None], layer.bias)

    maps = x[0].permute(0, 3, 1, 2)
    y = silu(norm(to(maps, block.enter), block.norms[0]))
    y = silu(norm(block.across(y), block.norms[1]))
    gate = to(silu(to(y.mean((2, 3), keepdim=True), block.squeeze)), block.excite).sigmoid()
    y = norm(to(y * gate, block.leave), block.norms[2])
    y = silu(y + norm(to(maps, block.shortcut[0]), block.shortcut[1]))
    assert block.squeeze.out_features == 2  # a quarter of what came
    assert torch.allclose(block(x)[0], y.permute(0, 2, 3, 1), atol=1e-5)


def test_positions_are_stretched_to_other_grids(tiny):
    method = own((1, 4, 4), depth=0)
    torch.nn.init.constant_(method.network.places, 2.0)
    tokens = tiny(n=35, grid=(1, 5, 7))
    moved = dataclasses.replace(tokens, x=tokens.x + 2)
    before = method.resample(tokens, 8).x
    torch.nn.init.zeros_(method.network.places)
    assert torch.allclose(before, method.resample(moved, 8).x, atol=1e-5)


def test_the_size_of_the_published_projector():
    with torch.device("meta"):
        widths = Widths(1024, 4096, 0, 4, 4, (1, 24, 24))
        network = make("projector", "c_abstractor", published=True).build(widths)
    assert parameters(network.before) == parameters(network.behind) == 7_914_240
    assert parameters(network.mlp) == 20_979_712
    assert parameters(network) == 2 * 7_914_240 + 20_979_712 + 576 * 1024


@pytest.mark.parametrize(("depth", "hidden", "millions"), [(3, 1024, 19.8), (3, 512, 7.2), (1, 512, 4.5)])
def test_sizes_for_a_small_host(depth, hidden, millions):
    with torch.device("meta"):
        method = make("projector", "c_abstractor", depth=depth, hidden=hidden)
        network = method.build(Widths(1152, 896, 0, 4, 4, (1, 27, 27)))
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=0.05)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="c_abstractor: depth -1 is below 0, or hidden None below 1"):
        make("projector", "c_abstractor", depth=-1)

import dataclasses

import pytest
import torch
from torch.nn.functional import gelu

from foveate.compressors.blocks import shuffled
from foveate.compressors.learned import Widths, untrained
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def own(grid, width, out, projector=(), **fields):
    return untrained(make("projector", "pixel_shuffle", **fields), Widths(width, out, 0, 4, 4, grid), projector)


def projector_of(width, out):
    generator = torch.Generator().manual_seed(1)
    shapes = ((out, width), (out,), (out, out), (out,))
    w1, b1, w2, b2 = (torch.randn(shape, generator=generator) for shape in shapes)
    return ((w1, b1), (w2, b2))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def rows(maps):
    return maps.flatten(2).mT[0].tolist()


def test_a_block_is_read_in_raster_order():
    assert rows(shuffled(torch.arange(16.0).view(1, 1, 4, 4), (2, 2))) == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert rows(shuffled(torch.arange(8.0).view(1, 1, 2, 4), (2, 2))) == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_channels_of_a_token_stay_together():
    maps = torch.arange(24.0).view(1, 3, 2, 4)  # channel c of token n is 8 c + n
    wide = torch.tensor(rows(shuffled(maps, (2, 2))))
    assert wide[0].tolist() == [8 * c + n for n in (0, 1, 4, 5) for c in range(3)]
    theirs = torch.nn.functional.pixel_unshuffle(maps, 2).flatten(2).mT[0]  # channel c s^2 + s p + q
    assert torch.equal(wide, theirs.view(2, 3, 4).mT.flatten(1))


def test_nothing_is_lost():
    maps = torch.randn(2, 3, 6, 4)
    wide = shuffled(maps, (3, 2))  # (2, 18, 2, 2)
    back = wide.view(2, 3, 2, 3, 2, 2).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 6, 4)
    assert torch.equal(back, maps)


def test_the_last_row_and_column_are_repeated_where_blocks_do_not_fit():
    assert rows(shuffled(torch.arange(9.0).view(1, 1, 3, 3), (2, 2))) == [
        [0, 1, 3, 4],
        [2, 2, 5, 5],
        [6, 7, 6, 7],
        [8, 8, 8, 8],
    ]
    assert shuffled(torch.zeros(1, 1, 27, 27), (2, 2)).shape == (1, 4, 14, 14)


def test_early_weights_have_the_map_transposed(tiny):
    tokens = tiny(n=24, grid=(1, 4, 6))
    method = own((1, 4, 6), 8, 5)
    made = method.resample(tokens, 6)
    early = dataclasses.replace(method, version="v1").resample(tokens, 6)
    assert made.grid_out == (1, 2, 3) and early.grid_out == (1, 3, 2)
    assert torch.equal(early.x, made.x[:, [0, 3, 1, 4, 2, 5]])
    assert early.position.tolist() == [[0, 12, 2, 14, 4, 16]]


def test_at_first_it_is_the_projector_on_the_mean_of_each_block(tiny):
    projector = projector_of(8, 6)
    tokens, method = tiny(n=144, grid=(1, 12, 12), batch=2), own((1, 12, 12), 8, 6, projector)
    (w1, b1), (w2, b2) = projector
    deco = make("projector", "deco")
    for count in (36, 16, 9):
        expected = gelu(deco.resample(tokens, count).x @ w1.T + b1) @ w2.T + b2
        assert torch.allclose(method.resample(tokens, count).x, expected, atol=1e-4)
    pairs = gelu(tokens.x.view(2, 72, 2, 8).mean(2) @ w1.T + b1) @ w2.T + b2
    assert torch.allclose(method.resample(tokens, 72).x, pairs, atol=1e-4)


def test_the_published_network_by_hand(tiny):
    tokens, method = tiny(n=16, grid=(1, 4, 4)), own((1, 4, 4), 8, 6, blocks=((2, 2),), norm=True)
    first, second = method.network.first["2x2"], method.network.second
    wide = tokens.x[0, [2, 3, 6, 7]].flatten()
    wide = (wide - wide.mean()) / (wide.var(correction=0) + 1e-5).sqrt()
    expected = second(gelu(first(wide)))
    assert torch.allclose(method.resample(tokens, 4).x[0, 1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "out", "wanted"), [(3200, 6144, 116_429_824), (1152, 896, 4_942_592)], ids=["26B", "small"]
)
def test_the_size_of_the_published_projector(width, out, wanted):
    with torch.device("meta"):
        method = make("projector", "pixel_shuffle", blocks=((2, 2),), norm=True)
        assert parameters(method.build(Widths(width, out, 0, 4, 4, (1, 32, 32)))) == wanted


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        ((1, 32, 32), [64, 121, 256, 512]),
        ((1, 27, 27), [49, 81, 196, 378]),
        ((2, 4, 4), [2, 8, 16]),  # 3 x 3 gives four in each frame too
        ((1, 1, 9), [5]),
    ],
)
def test_each_count_tells_its_block(grid, wanted):
    assert make("projector", "pixel_shuffle").reachable(grid) == wanted


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="pixel_shuffle: version 'v3' is neither 'v1' nor 'v2'"):
        make("projector", "pixel_shuffle", version="v3")
    with pytest.raises(ValueError, match="must have sides of 1 or more"):
        make("projector", "pixel_shuffle", blocks=((0, 2),))

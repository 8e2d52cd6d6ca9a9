"""TokenPacker: who sees whom, its start and its published size."""

import pytest
import torch
from torch.nn.functional import gelu, interpolate

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.networks import seen
from foveate.compressors.registry import make
from foveate.compressors.trial import for_method

pytestmark = pytest.mark.fast

SQUARE = (1, 4, 4)


def method(grid=SQUARE, projector=(), widths=(8, 12), **settings):
    return untrained(make("projector", "token_packer", **settings), Widths(*widths, 0, 4, 4, grid), projector)


def told(tiny, grid, which, **options):
    t, h, w = grid
    return for_method(tiny(n=t * h * w, grid=grid, **options), which)


def touched(which, tokens, token, count):
    """Which new tokens change with one token, in all maps that are read."""
    bump = torch.zeros(1, tokens.n, 1)
    bump[:, token] = 3
    signals = {key: value + bump if key.startswith("block_states") else value for key, value in tokens.signals.items()}
    moved = type(tokens)(**{**vars(tokens), "x": tokens.x + bump * torch.arange(8), "signals": signals})
    change = (which.resample(moved, count).x - which.resample(tokens, count).x).abs().amax(-1)[0]
    return (change > 1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("grid", "side"), [((1, 12, 12), 2), ((1, 12, 12), 3), ((1, 12, 12), 4), ((1, 5, 7), 2)])
def test_a_token_concerns_its_own_cell_alone(grid, side, residual, tiny):
    which = method(grid, sides=(side,), residual=residual)
    which.network.attention.out.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    tokens, across = told(tiny, grid, which), -(-grid[2] // side)
    count = which.reachable(grid)[0]
    for row, column in ((0, 0), (1, 3), (grid[1] - 1, grid[2] - 1)):
        cell = row // side * across + column // side
        assert touched(which, tokens, row * grid[2] + column, count) == [cell]


def test_equal_keys_give_the_mean_of_the_values():
    value = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    query, key = torch.randn(1, 2, 6), torch.ones(1, 4, 6)
    made = seen(query, key, value, 3, torch.tensor([[0, 1, 3], [2, -1, -1]]))
    assert torch.allclose(made[0, 0], value[0, [0, 1, 3]].mean(0), atol=1e-6) and torch.equal(made[0, 1], value[0, 2])


def test_attention_to_few_places_is_that_to_all_with_the_others_masked():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 6, generator=generator) for n in (2, 5, 5))
    made = seen(q, k, v, 2, torch.tensor([[4, 0, -1], [1, 2, 3]]))
    for row, m, heads in ((0, 0, [4, 0]), (1, 1, [1, 2, 3])):
        for head in (slice(0, 3), slice(3, 6)):
            weight = (k[row, heads, head] @ q[row, m, head] / 3**0.5).softmax(0)
            assert torch.allclose(made[row, m, head], weight @ v[row, heads, head], atol=1e-6)


def test_the_order_within_a_cell_does_not_matter_to_a_query_that_stays(tiny):
    grid = (1, 3, 3)
    which = method(grid, sides=(3,))
    which.network.attention.out.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    tokens = told(tiny, grid, which)
    order = torch.tensor([8, 5, 2, 7, 4, 1, 6, 3, 0])  # the middle, which a side of 3 shrinks to, stays
    signals = {key: value[:, order] for key, value in tokens.signals.items() if key.startswith("block_states")}
    turned = type(tokens)(**{**vars(tokens), "x": tokens.x[:, order], "signals": signals})
    assert torch.allclose(which.resample(turned, 1).x, which.resample(tokens, 1).x, atol=1e-5)


def test_it_starts_as_the_projector_on_the_shrunk_map(tiny):
    generator = torch.Generator().manual_seed(1)
    w1, b1, w2, b2 = (torch.randn(*shape, generator=generator) for shape in ((12, 8), (12,), (12, 12), (12,)))
    which = method((2, 6, 6), ((w1, b1), (w2, b2)))
    tokens = told(tiny, (2, 6, 6), which)
    for side in (2, 3):
        made = which.resample(tokens, 2 * (6 // side) ** 2)
        maps = tokens.x.view(2, 6, 6, 8).permute(0, 3, 1, 2)
        low = interpolate(maps, size=(6 // side, 6 // side), mode="bilinear").flatten(2).mT.reshape(1, -1, 8)
        assert torch.allclose(made.x, gelu(low @ w1.T + b1) @ w2.T + b2, atol=1e-4)
        assert made.grid_out == (2, 6 // side, 6 // side)


def test_states_are_read_behind_the_published_blocks():
    which = make("projector", "token_packer")
    assert sorted((s.layer, s.tag) for s in which.signals(23)) == [(11, "level0"), (15, "level1"), (21, "level2")]
    assert sorted(s.layer for s in which.signals(7)) == [3, 5, 6]
    assert make("projector", "token_packer", levels=()).signals(23) == frozenset()


def test_every_map_is_read(tiny):
    which = method()
    which.network.attention.out.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    tokens = told(tiny, SQUARE, which)
    for key in ("block_states.level0", "block_states.level1", "block_states.level2"):
        other = type(tokens)(**{**vars(tokens), "signals": {**tokens.signals, key: tokens.signals[key] * -2}})
        assert not torch.allclose(which.resample(other, 4).x, which.resample(tokens, 4).x, atol=1e-6)


def test_counts_of_published_grids():
    which = make("projector", "token_packer")
    assert which.reachable((1, 24, 24)) == [36, 64, 144, 576]
    assert which.reachable((1, 27, 27)) == [49, 81, 196, 729]


@pytest.mark.parametrize(
    ("settings", "widths", "grid", "millions"),
    [
        ({"residual": False}, (1024, 4096), 24, 36.7),
        ({}, (1152, 896), 27, 21.8),
        ({"levels": (), "width": 512}, (1152, 896), 27, 4.6),
    ],
)
def test_the_sizes_of_the_module(settings, widths, grid, millions):
    with torch.device("meta"):
        network = make("projector", "token_packer", **settings).build(Widths(*widths, 0, 23, 32, (1, grid, grid)))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions
    assert network.attention.heads == (
        9 if widths[0] == 1152 and not settings else network.norm_q.weight.numel() // 128
    )


def test_another_width_has_no_residual():
    assert method().network.residual and not method(width=4).network.residual
    assert not method(residual=False).network.residual


@pytest.mark.parametrize("settings", [{"sides": ()}, {"sides": (0, 2)}, {"width": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="token_packer: sides"):
        make("projector", "token_packer", **settings)

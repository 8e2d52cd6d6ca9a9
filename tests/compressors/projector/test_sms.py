"""Self-Mining Sampler: its start, and what a query sees."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, gelu

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def method(grid=(1, 5, 5), projector=(), widths=(8, 12), **settings):
    return untrained(make("projector", "sms", **settings), Widths(*widths, 0, 4, 4, grid), projector)


def awake(**settings):
    """One whose attention counts."""
    which = method(**settings)
    which.network.join.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return which


def touched(which, tokens, token, count):
    """Which new tokens change with one token."""
    x = tokens.x.clone()
    x[:, token] += 3
    change = which.resample(replace(tokens, x=x), count).x - which.resample(tokens, count).x
    return (change.abs().amax(-1)[0] > 1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize("reach", ["cell", "all"])
def test_it_starts_as_pooling_before_the_projector(reach, tiny):
    generator = torch.Generator().manual_seed(1)
    w1, b1, w2, b2 = (torch.randn(*shape, generator=generator) for shape in ((12, 8), (12,), (12, 12), (12,)))
    which = method((2, 5, 5), ((w1, b1), (w2, b2)), reach=reach)
    tokens = tiny(n=50, grid=(2, 5, 5), batch=2)
    pooling = make("projector", "deco")
    for count in (2, 8, 32, 50):
        low, made = pooling.resample(tokens, count), which.resample(tokens, count)
        assert torch.allclose(made.x, gelu(low.x @ w1.T + b1) @ w2.T + b2, atol=1e-4)
        assert made.grid_out == low.grid_out and torch.equal(made.position, low.position)


def test_a_token_concerns_the_cells_that_it_lies_in(tiny):
    tokens, which = tiny(n=25, grid=(1, 5, 5)), awake()
    assert touched(which, tokens, 0, 4) == [0] and touched(which, tokens, 9, 4) == [1]
    assert touched(which, tokens, 12, 4) == [0, 1, 2, 3]  # the middle row and column feed two cells
    assert touched(which, tokens, 2, 4) == [0, 1]
    for token in (0, 7, 24):
        assert touched(which, tokens, token, 25) == [token]
    assert touched(awake(reach="all"), tokens, 0, 4) == [0, 1, 2, 3]


def test_frames_are_apart_unless_all_is_in_reach(tiny):
    tokens = tiny(n=18, grid=(2, 3, 3))
    assert touched(awake(grid=(2, 3, 3)), tokens, 4, 8) == [0, 1, 2, 3]
    assert touched(awake(grid=(2, 3, 3), reach="all"), tokens, 4, 8) == list(range(8))


def test_one_token_reads_all(tiny):
    tokens = tiny(n=25, grid=(1, 5, 5))
    local, everywhere = awake(), awake(reach="all")
    assert torch.allclose(local.resample(tokens, 1).x, everywhere.resample(tokens, 1).x, atol=1e-5)
    assert not torch.allclose(local.resample(tokens, 4).x, everywhere.resample(tokens, 4).x, atol=1e-3)


def test_what_attention_adds_is_by_hand(tiny):
    which, tokens = awake(widths=(4, 4), grid=(1, 1, 2)), tiny(n=2, grid=(1, 1, 2), dim=4)
    net, x = which.network, tokens.x[0]
    pooled = adaptive_avg_pool2d(x.T.view(1, 4, 1, 2), 1).flatten()
    q, k, v = net.norm_q(net.query(pooled)), net.norm_k(net.key(x)), net.norm_v(net.value(x))
    read = (k @ q / 2).softmax(0) @ v
    first, second = net.mlp.layers
    assert torch.allclose(which.resample(tokens, 1).x[0, 0], second(gelu(first(pooled) + net.join(read))), atol=1e-6)


def test_the_size_of_the_module():
    with torch.device("meta"):
        network = make("projector", "sms").build(Widths(1152, 896, 0, 26, 24, (1, 27, 27)))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 5.7


def test_an_unknown_reach_is_refused():
    with pytest.raises(ValueError, match="sms: reach 'global' is neither 'cell' nor 'all'"):
        make("projector", "sms", reach="global")

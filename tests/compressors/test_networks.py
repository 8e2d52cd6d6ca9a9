"""Parts of learned networks, against values worked out by hand."""

import pytest
import torch

from foveate.compressors.networks import Attention, copy_product, heads_of, look_around, sincos, spread, stretched

pytestmark = pytest.mark.fast


def test_places_tell_the_column_in_the_first_half_and_the_row_in_the_second():
    one = [0.8415, 0.01, 0.5403, 0.99995]
    none = [0.0, 0.0, 1.0, 1.0]
    assert torch.allclose(sincos(2, 2, 8), torch.tensor([none + none, one + none, none + one, one + one]), atol=1e-4)
    assert sincos(2, 3, 8).shape == (6, 8) and torch.equal(sincos(2, 3, 8)[0], sincos(5, 5, 8)[0])


def test_a_table_keeps_its_own_size_bit_for_bit_and_a_level_one_stays_level():
    table = sincos(3, 4, 8)
    assert stretched(table, (3, 4), (3, 4)) is table
    level = torch.full((12, 8), 2.0)
    assert torch.allclose(stretched(level, (3, 4), (7, 5)), torch.full((35, 8), 2.0))


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    mine, theirs = Attention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([mine.q.weight, mine.k.weight, mine.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([mine.q.bias, mine.k.bias, mine.v.bias]))
        theirs.out_proj.weight.copy_(mine.out.weight)
        theirs.out_proj.bias.copy_(mine.out.bias)
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    assert torch.allclose(mine(q, k, v), theirs(q, k, v)[0], atol=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(1024, 16), (1152, 18), (96, 2), (24, 1), (200, 4)])
def test_heads_are_as_wide_as_allowed_and_divide_the_width(width, heads):
    assert heads_of(width) == heads and width % heads == 0 and width // heads <= 64


def test_an_attention_that_looks_around_hands_on_the_mean_of_what_is_near_in_every_head():
    attention, places = Attention(96, 2), sincos(6, 6, 96)
    look_around(attention)
    values = torch.zeros(36, 96)
    values[14] = 1.0
    made = attention(places[None], places[None], values[None])[0].detach()
    for features in (made[:, :48], made[:, 48:]):  # of one head each
        seen = features.mean(-1)
        assert seen.argmax() == 14 and seen[14] > 0.15
        assert seen[[8, 13, 15, 20]].sum() > 2 * seen[[12, 16, 2, 26]].sum()


def test_the_first_places_of_a_spread_order_lie_evenly_over_the_grid():
    order = spread(12, 12)
    assert sorted(order.tolist()) == list(range(144)) and order[0] == 65  # of the four in the middle, the lowest
    for m in (9, 16, 36, 64):
        row, column = order[:m] // 12, order[:m] % 12
        for half in (row < 6, column < 6):
            assert abs(half.float().mean() - 0.5) <= 0.17
    gaps = torch.cdist(
        torch.stack([order // 12, order % 12], -1)[:16].float(), torch.cartesian_prod(*[torch.arange(12.0)] * 2)
    )
    assert gaps.amin(0).max() < 3.7  # no place is farther from the first 16


def test_a_product_is_the_projector_without_what_stands_between():
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    projector = ((torch.randn(6, 4), torch.randn(6)), (torch.randn(3, 6), torch.randn(3)))
    (w1, b1), (w2, b2) = projector
    copy_product(layer, projector)
    assert torch.allclose(layer(x), (x @ w1.T + b1) @ w2.T + b2, atol=1e-5)
    before = layer.weight.clone()
    copy_product(layer, ())
    copy_product(layer, ((torch.randn(9, 4), torch.randn(9)),))
    assert torch.equal(layer.weight, before)

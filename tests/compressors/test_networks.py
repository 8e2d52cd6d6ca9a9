"""Parts of learned networks, against values worked out by hand."""

import pytest
import torch

from foveate.compressors.networks import Attention, heads_of, sincos, stretched

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

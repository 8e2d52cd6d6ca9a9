import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def test_one_round_is_tome_of_the_encoder(tiny):
    tokens = tiny(n=12, batch=2)
    outside, inside = make("outside", "tome").reduce(tokens, 8), make("encoder", "tome").reduce(tokens, 8)
    assert torch.equal(apply(outside, tokens.x), apply(inside, tokens.x))


def test_rounds_follow_each_other_on_averaged_keys(tiny):
    keys = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]])
    x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    tokens = tiny(n=4, grid=(1, 2, 2), x=x, keys=keys)
    half = make("outside", "tome").reduce(tokens, 2)
    assert half.anchor.tolist() == [[1, 3]] and apply(half, x).flatten().tolist() == [1.5, 3.5]
    one = make("outside", "tome").reduce(tokens, 1)
    assert one.anchor.tolist() == [[3]] and apply(one, x).item() == 2.5
    assert apply_size(one, tokens.size).item() == 4


def test_sizes_from_the_encoder_weigh_in(tiny):
    x = torch.tensor([[[1.0], [2.0], [6.0]]])
    tokens = tiny(n=3, grid=(1, 1, 3), x=x, size=torch.tensor([[1.0, 2, 3]]), keys=torch.ones(1, 3, 2))
    one = make("outside", "tome").reduce(tokens, 1)
    assert apply(one, x).item() == pytest.approx((1 + 4 + 18) / 6)


def test_reads_the_keys_of_the_block_that_feeds_the_projector():
    assert make("outside", "tome").signals(23) == {Signal("keys", -1)}

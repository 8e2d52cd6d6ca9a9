import dataclasses

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_the_lot_depends_on_seed_and_place_alone(tiny):
    tokens, other = tiny(n=12, seed=1), tiny(n=12, seed=2)
    method = make("outside", "random")
    same_seed = dataclasses.replace(other, seed=tokens.seed)
    assert torch.equal(method.reduce(tokens, 5).anchor, method.reduce(same_seed, 5).anchor)
    assert not torch.equal(method.reduce(tokens, 5).anchor, method.reduce(other, 5).anchor)


def test_a_token_keeps_its_number_when_others_are_gone(tiny):
    tokens = tiny(n=12)
    method = make("prefill", "random")
    five = tokens.position.gather(1, method.reduce(tokens, 5).anchor)
    eight = method.reduce(tokens, 8).anchor
    left = dataclasses.replace(
        tokens,
        x=tokens.x.gather(1, eight.unsqueeze(-1).expand(-1, -1, 8)),
        position=tokens.position.gather(1, eight),
        size=tokens.size.gather(1, eight),
    )
    again = left.position.gather(1, method.reduce(left, 5).anchor)
    assert torch.equal(again, five)


def test_every_token_is_kept_equally_often(tiny):
    rows = 4000
    tokens = dataclasses.replace(tiny(n=12, batch=rows), seed=torch.arange(rows))
    kept = torch.bincount(make("outside", "random").reduce(tokens, 3).anchor.flatten(), minlength=12) / rows
    assert (kept - 3 / 12).abs().max() < 0.03


def test_acts_where_fastv_does():
    assert make("prefill", "random").sites(64, 16, 32) == [(2, 16)]
    assert make("prefill", "random", layer=(8, 32)).sites(64, 16, 8) == [(2, 16)]

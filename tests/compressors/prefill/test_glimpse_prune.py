import math
from dataclasses import replace

import pytest
import torch

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.prefill.glimpse_prune import angles, chosen, turned
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def ready(heads=1, grid=(1, 3, 4), decoder=8, **settings):
    return untrained(make("prefill", "glimpse_prune", **settings), Widths(8, decoder, 0, 4, 6, grid, heads))


@pytest.mark.parametrize(
    ("probability", "least", "kept"),
    [
        ((0.9, 0.4, 0.6, 0.1), 1, [0, 2]),
        ((0.3, 0.4, 0.2, 0.1), 1, [1]),  # all below a half: the best of them
        ((0.3, 0.4, 0.2, 0.1), 2, [0, 1]),
        ((0.9, 0.8, 0.7, 0.6), 1, [0, 1, 2]),  # never more than asked for
        ((0.5, 0.5, 0.5, 0.5), 1, [0]),  # not above it
    ],
)
def test_what_is_more_likely_than_not_stays(probability, least, kept):
    assert chosen(torch.tensor([probability]).logit(), 3, 0.5, least).anchor.tolist() == [kept]


def test_without_a_threshold_the_count_decides():
    assert chosen(torch.tensor([[0.9, 0.4, 0.6, 0.1]]).logit(), 3, 0.0, 1).anchor.tolist() == [[0, 1, 2]]


def test_rows_may_keep_different_numbers():
    found = chosen(torch.tensor([[0.9, 0.1, 0.6, 0.1], [0.1, 0.1, 0.1, 0.2]]).logit(), 3, 0.5, 1)
    assert found.anchor.tolist() == [[0, 2], [3, -1]] and found.count.tolist() == [2, 1]


@pytest.mark.parametrize(("layer", "depth", "looks"), [((21, 32), 32, 21), ((18, 28), 28, 18), ((21, 32), 8, 5)])
def test_looks_in_the_papers_layer_and_cuts_behind_it(layer, depth, looks):
    method = make("prefill", "glimpse_prune", layer=layer)
    assert method.sites(576, 40, depth) == [(looks + 1, 40)]
    assert method.signals(depth) == {Signal("glimpse_query", looks), Signal("tower_levels")}


def test_the_predictor_has_the_papers_sizes_on_its_models():
    widths = Widths(1024, 512, 0, 23, 3, (1, 24, 24), 32)  # a quarter of 1024 and more is 256
    network = make("prefill", "glimpse_prune").build(replace(widths, decoder=1024))
    layer, n, h = network.layers[0], 576, 256
    assert layer.q.weight.shape == (768, 768) and layer.down.weight.shape == (256, 512)
    each = 2 * n * 1024 * 512 + 4 * n * 768**2 + 4 * n * h**2 + 2 * n**2 * (768 + 256) + 6 * n * 256 * 512
    assert network.flops(n) == 2 * n * 32 * h + 4 * each + 2 * n * h
    assert network.vectors(3).shape == (3, 1024)
    assert torch.allclose(network.vectors(3).square().mean(-1), torch.ones(3), atol=1e-2)


def test_turning_tells_rows_and_columns_apart_by_distance_alone():
    x = torch.randn(1, 1, 4 * 12, generator=torch.Generator().manual_seed(0)).expand(1, 12, -1)
    y = turned(x, angles(torch.arange(12)[None], 4, 12)).unflatten(-1, (4, 12))
    product = torch.einsum("nhe,mhe->nmh", y[0], y[0])
    assert torch.allclose(product[0, 5], product[5, 10], atol=1e-5)  # one down and one right
    assert torch.allclose(product[0, 4], product[1, 5], atol=1e-5)
    assert not torch.allclose(product[0, 4], product[0, 1], atol=1e-3)
    assert torch.allclose(y.square().sum(-1), x.unflatten(-1, (4, 12)).square().sum(-1), atol=1e-5)


def test_pictures_do_not_see_each_other(tiny):
    method = ready(grid=(2, 2, 3))
    both = tiny(n=12, grid=(2, 2, 3))
    changed = {kind: both.signals[kind].clone() for kind in method.kinds}
    changed["tower_levels"][:, :, 6:] += 1
    changed["glimpse_query"][:, :, 6:] -= 1
    one, other = method.logits(both), method.logits(replace(both, signals={**both.signals, **changed}))
    assert torch.equal(one[:, :6], other[:, :6])
    assert (one[:, 6:] - other[:, 6:]).abs().min() > 1e-4


def test_the_predictor_equals_a_loop_over_tokens_and_heads(tiny):
    method, tokens = ready(), tiny(n=12)
    network, states = method.network, tokens.signals["tower_levels"][0]
    x = network.enter(tokens.signals["glimpse_query"][0].T)
    for layer, condition, state in zip(network.layers, network.conditions, states, strict=True):
        y = layer.norms[0](x)
        both = torch.cat([y, condition(state)], dim=1)
        q, k, v = (part.unflatten(1, (4, -1)).clone() for part in (layer.q(both), layer.k(both), layer.v(y)))
        e = q.shape[-1]
        for n in range(12):
            for i in range(e // 2):
                place = (n // 4, n % 4)[i >= e // 4]
                angle = place * 10000 ** (-(i % (e // 4)) / (e // 4))
                for part in (q, k):
                    a, b = part[n, :, i].clone(), part[n, :, i + e // 2].clone()
                    part[n, :, i] = a * math.cos(angle) - b * math.sin(angle)
                    part[n, :, i + e // 2] = b * math.cos(angle) + a * math.sin(angle)
        seen = [torch.softmax(q[:, h] @ k[:, h].T / e**0.5, dim=-1) @ v[:, h] for h in range(4)]
        x = x + layer.out(torch.cat(seen, dim=1))
        y = layer.norms[1](x)
        x = x + layer.down(torch.nn.functional.silu(layer.gate(y)) * layer.up(y))
    assert torch.allclose(method.logits(tokens)[0], network.leave(x)[:, 0], atol=1e-5)


def test_bad_settings_are_named():
    for settings, message in (
        ({"layer": (31, 32)}, r"layer 31 is outside 1\.\.30"),
        ({"threshold": 1.0}, r"threshold 1.0 is outside \[0, 1\)"),
        ({"least": 0}, "least 0 is below 1"),
    ):
        with pytest.raises(ValueError, match=f"glimpse_prune: {message}"):
            make("prefill", "glimpse_prune", **settings)

"""What a controller sees between the stages, on towers without CLS and with units of patches."""

import numpy as np
import pytest
import torch

from foveate.models.decoder_signals import At, last_query
from foveate.models.features import TOKEN_FEATURES, feature_flops, reveal

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


def opened(host, tiny):
    images = [tiny.picture(0, 32, 48), [tiny.picture(1, 16, 24), tiny.picture(2, 40, 24)]]
    return host.open(images, tiny.QUESTIONS[:2])


def test_features_of_every_group_are_in_their_ranges_and_tell_rows_apart(host, tiny):
    p = opened(host, tiny)
    for group, names in TOKEN_FEATURES.items():
        found = reveal(p, group)
        assert [len(each) for each in found] == [len(names)] * 2
        assert np.isfinite(found).all()
        assert (np.abs(found) <= 1 + 1e-5).all()
        assert np.abs(found[0] - found[1]).max() > 1e-3


def test_features_cost_what_they_are_said_to_cost(host, tiny):
    p = opened(host, tiny)
    for group in TOKEN_FEATURES:
        reveal(p, group)
    for row, ledger in zip(p.rows, p.ledger, strict=True):
        assert ledger.by_stage()["features"] == sum(feature_flops(host, row.shape).values())


@torch.no_grad()
def test_the_share_of_attention_on_the_pictures_is_that_of_the_decoders_first_layer(host, tiny):
    p = opened(host, tiny)
    found = reveal(p, "layer1")
    stream, cache = p.opened.caches[0].stream, p.opened.caches[0]
    for row in range(2):
        attention = last_query(At(host.decoder, 0, stream, cache, torch.tensor([row])))
        mass = attention.mean(dim=1).sum().item()
        assert found[row][TOKEN_FEATURES["layer1"].index("visual_mass")] == pytest.approx(mass, abs=1e-5)
        normed = host.decoder.layers[0].input_layernorm(stream.x[row : row + 1])
        full = host.decoder.layers[0].self_attn  # the module itself, by eager attention, says the same
        length = int(stream.length[row])
        cos, sin = (part[row : row + 1, :length] for part in p.opened.rotation)
        wanted = eager_row(full, normed[:, :length], cos, sin)
        assert torch.allclose(attention[0], wanted[:, stream.visual[row, :length]], atol=1e-5)


def eager_row(module, x, cos, sin):
    """(H, S) the last query's attention as the module's own eager path computes it."""
    held, module.config._attn_implementation = module.config._attn_implementation, "eager"
    try:
        _, weights = module(hidden_states=x, position_embeddings=(cos, sin), attention_mask=None)
    finally:
        module.config._attn_implementation = held
    return weights[0, :, -1]

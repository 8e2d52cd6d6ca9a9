"""A method's own token where ids have three coordinates: it stands behind the last of all, and places are kept."""

import pytest
import torch

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models.glimpse import glimpse_query

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


def opened(host, tiny):
    pictures = [tiny.picture(0, 32, 48), tiny.picture(1, 24, 16)]
    return host.open([pictures, pictures[0]], ["what is this ?", "left ?"])


@torch.no_grad()
def test_the_token_sees_what_it_would_see_running_along(host, tiny):
    method, decoder, layer = untrained(make("prefill", "glimpse_prune"), host.widths), host.decoder, 1
    token, p = method.glimpse(layer + 1), opened(host, tiny)
    p.prefill()
    for row in range(2):
        stream = p.caches[0].stream
        s = int(stream.length[row])
        end = p.rows[row].place.max() + 1
        place = torch.cat([stream.place[row, :s], torch.full((1, 3), int(end))])[None]
        x = torch.cat([stream.x[row, :s], token[:1]])[None]
        mask = torch.zeros(s + 1, s + 1).masked_fill(~torch.ones(s + 1, s + 1, dtype=torch.bool).tril(), -1e9)
        x = decoder.layers[0](x, attention_mask=mask[None, None], position_embeddings=decoder.rotation(x, place))
        x[0, -1] += token[1]
        if stream.extra is not None:
            x[0, :s] += stream.extra[row, :s, 0]
        q, k = (decoder.rotated(layer, x, place, part)[0] for part in "qk")
        logits = q[:, -1:] @ k.repeat_interleave(decoder.heads // decoder.kv_heads, dim=0).mT
        wanted = (logits[:, 0] * decoder.layers[layer].self_attn.scaling).log_softmax(-1)[:, :s]
        found = glimpse_query(p.opened, torch.tensor([row]), layer, token)[0]
        assert torch.allclose(found, wanted[:, stream.visual[row, :s]], atol=1e-4)


def test_places_stay_on_all_axes_and_every_cache_is_alike(host, tiny):
    p = opened(host, tiny)
    p.prefill(untrained(make("prefill", "glimpse_prune"), host.widths), 0.5)
    for row in range(2):
        n = p.counts["prefill"][row]
        assert p.cached[row] == [len(p.rows[row].text) + n] * host.decoder_depth
        for cache in p.caches:
            length = int(cache.length[row])
            entry = cache.stream.entry[row, :length]
            assert cache.stream.place[row, :length].tolist() == p.rows[row].place[entry].tolist()
            assert int(cache.next_place[row]) == p.rows[row].place.max() + 1
    p.decode(max_new_tokens=2)
    assert all(p.generated)

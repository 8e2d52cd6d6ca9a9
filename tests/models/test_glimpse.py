"""A method's own token: what it sees is what it would see running along, and what it drops leaves every cache."""

from dataclasses import replace

import pytest
import torch

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models.glimpse import glimpse_query, level_blocks, vectors_on_grid
from foveate.models.visual import VisualState

pytestmark = pytest.mark.fast


def ready(host, **settings):
    return untrained(make("prefill", "glimpse_prune", **settings), host.widths)


@torch.no_grad()
def along(host, stream, row, layer, token):
    """Log attention (H, n) of a token that runs along behind one prompt, all layers over the whole sequence."""
    decoder, s = host.decoder, int(stream.length[row])
    x = torch.cat([stream.x[row, :s], torch.zeros(1, stream.x.shape[-1])])[None]
    place = torch.cat([stream.place[row, :s], stream.next_place[row].expand(1, decoder.coordinates)])[None]
    mask = torch.zeros(s + 1, s + 1).masked_fill(~torch.ones(s + 1, s + 1, dtype=torch.bool).tril(), -1e9)
    rotation = decoder.rotation(x, place)
    for index in range(layer + 1):
        x = torch.cat([x[:, :-1], x[:, -1:] + token[index]], dim=1)
        if index < layer:
            x = decoder.layers[index](x, attention_mask=mask[None, None], position_embeddings=rotation)
    q, k = (decoder.rotated(layer, x, place, part)[0] for part in "qk")
    k = k.repeat_interleave(decoder.heads // decoder.kv_heads, dim=0)
    logits = (q[:, -1:] @ k.mT)[:, 0] * decoder.layers[layer].self_attn.scaling
    return logits.log_softmax(-1)[:, :s][:, stream.visual[row, :s]]


@pytest.mark.parametrize("settings", [{"tower": "clip"}, {"tower": "siglip", "decoder": "qwen2"}], ids=str)
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_the_token_sees_what_it_would_see_running_along(hosts, tiny, settings, layer):
    host = hosts(**settings)
    token = ready(host).glimpse(layer + 1)
    p = host.open([tiny.picture(s) for s in range(3)], tiny.questions[:3])  # of several lengths
    p.prefill()
    found = glimpse_query(p.opened, torch.arange(3), layer, token)
    for row in range(3):
        assert torch.allclose(found[row], along(host, p.caches[0].stream, row, layer, token), atol=1e-4)


@torch.no_grad()
def whole(host, p, cut, kept, answer):
    """Log-probability of an answer when all is recomputed: dropped tokens are seen by the prompt in the layers before
    the cut, and by nobody else."""
    decoder, row = host.decoder, p.rows[0]
    ids = host.inputs.answer_ids(row, answer)
    x = decoder.embed(torch.tensor([*row.ids.tolist(), *ids]))[None]
    prompt, start = len(row.ids), row.first[0]
    x[0, start : start + 16] = p.states["projector"][0].x
    s = x.shape[1]
    gone = torch.zeros(s, dtype=torch.bool)
    gone[[start + i for i in range(16) if i not in kept]] = True
    place = torch.arange(s)[None]
    for index, layer in enumerate(decoder.layers):
        seen = torch.ones(s, s, dtype=torch.bool).tril()
        from_row = 0 if index >= cut else prompt
        seen[from_row:, gone] = False
        seen |= torch.eye(s, dtype=torch.bool)
        mask = torch.zeros(s, s).masked_fill(~seen, torch.finfo(torch.float32).min)
        x = layer(x, attention_mask=mask[None, None], position_embeddings=decoder.rotation(x, place[..., None]))
    logp, ids = decoder.logits(x[0]).log_softmax(-1), [*ids, 3]
    return sum(logp[-len(ids) + i, token].item() for i, token in enumerate(ids))


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_what_leaves_is_gone_from_every_cache_and_answers_are_those_of_a_recomputation(host, tiny, threshold):
    method = ready(host, threshold=threshold, layer=(1, 4))
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    p.prefill(method, 0.375)
    words, n = len(p.rows[0].text), p.counts["prefill"][0]
    assert p.counts["layers"] == [[16, 16, n, n]] and (n == 6 or (threshold and 1 <= n < 6))
    assert p.cached == [[words + n] * 4]
    assert [int(c.next_place[0]) for c in p.caches] == [words + 16] * 4  # places stay
    kept = p.caches[-1].stream.position[0][p.caches[-1].stream.visual[0]].tolist()
    for cache in p.caches:
        assert torch.equal(cache.stream.entry[0], p.caches[-1].stream.entry[0])
    for answer in ("red", "green thing two"):
        assert p.score([[answer]])[0].logprob[0] == pytest.approx(whole(host, p, 2, kept, answer), abs=1e-4)


def test_batch_mates_keep_their_caches(host, tiny):
    methods, keeps = [ready(host), None, make("prefill", "fastv"), ready(host)], [0.5, 1.0, 0.25, 0.25]
    p = host.open([tiny.picture(s) for s in range(4)], tiny.questions[:4])
    p.prefill(methods, keeps)
    together = p.score([["red"], ["one"], ["left thing"], ["blue"]])
    for row in range(4):
        alone = host.open([tiny.picture(row)], tiny.questions[row : row + 1])
        alone.prefill(methods[row], keeps[row])
        assert alone.cached[0] == p.cached[row] and alone.counts["layers"][0] == p.counts["layers"][row]
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
        (score,) = alone.score([[["red"], ["one"], ["left thing"], ["blue"]][row]])
        assert score.logprob == pytest.approx(together[row].logprob, abs=1e-4)


def test_the_cache_can_be_shrunk_further(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    p.prefill(ready(host), 0.5)
    p.choose_decode(make("decode", "look_m"), 0.5)
    assert p.cached == [[len(p.rows[0].text) + 4] * 4]
    assert p.decode(max_new_tokens=2)


def test_levels_are_the_blocks_of_the_paper_and_follow_tokens_to_their_places():
    assert level_blocks(32, 4) == [31, 23, 15, 7]
    assert level_blocks(23, 4) == [22, 16, 11, 5] and level_blocks(2, 4) == [1, 1, 0, 0]
    state = VisualState(
        torch.zeros(3, 2), *(torch.ones(3), torch.tensor([0, 5, -1]), torch.arange(3)), torch.zeros(3, 1), (1, 2, 4)
    )
    value = torch.tensor([[2.0, 4.0], [6.0, 8.0], [9.0, 9.0]])
    full = vectors_on_grid(value, state, (1, 2, 4))
    assert full[0].tolist() == [2, 4] and full[5].tolist() == [6, 8] and full.abs().sum() == 20
    coarse = vectors_on_grid(value, state, (1, 1, 2))
    assert coarse.tolist() == [[4, 6], [0, 0]]
    assert torch.equal(vectors_on_grid(value.bfloat16(), replace(state), (1, 2, 4)), full.bfloat16())


def test_a_pass_reads_the_towers_blocks_for_what_comes_to_the_decoder(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    p.thin(make("outside", "stride"), 0.5)
    p.prefill()
    levels = p.ask._levels(p.opened, 0)
    assert levels.shape == (4, 8, 24)
    left = p.states["outside"][0].position
    last = p.states["encoder"][0].x[left]
    assert torch.equal(levels[0], last)  # the last block's output is what the projector reads
    assert not torch.equal(levels[0], levels[1])

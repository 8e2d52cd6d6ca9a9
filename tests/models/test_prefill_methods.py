"""What published prefill methods promise inside a model: places, cache lengths, weights of merged tokens."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveate.compressors.base import apply
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.decoder_signals import At, last_query, unrotated_query

pytestmark = pytest.mark.fast


def opened(host, tiny, rows=1):
    return host.open([tiny.picture(s) for s in range(rows)], tiny.questions[:rows])


def test_fastv_keeps_places_and_shortens_the_later_caches_alone(host, tiny):
    p = opened(host, tiny, rows=2)
    p.prefill(make("prefill", "fastv"), 0.5)
    for row in range(2):
        n = len(p.rows[row].ids)
        assert p.cached[row] == [n, n - 8, n - 8, n - 8]
        stream = p.caches[1].stream
        length = int(stream.length[row])
        assert torch.equal(stream.place[row, :length, 0], stream.entry[row, :length])
        assert [int(cache.next_place[row]) for cache in p.caches] == [n] * 4


def test_pyramiddrop_numbers_anew_and_decodes_at_each_layers_own_length(host, tiny):
    p = opened(host, tiny)
    p.prefill(make("prefill", "pyramiddrop", share=0.5), 0.125)
    words = len(p.rows[0].text)
    assert p.counts["layers"] == [[16, 8, 4, 2]]
    assert [int(cache.next_place[0]) for cache in p.caches] == [words + n for n in (16, 8, 4, 2)]
    for cache in p.caches:
        length = int(cache.length[0])
        assert cache.stream.place[0, :length, 0].tolist() == list(range(length))


def test_rows_of_attention_in_half_precision_are_the_models(folders, tiny):
    folder = folders(text_tower=True)
    host = load_host(folder, dtype="float16")
    host.model.set_attn_implementation("eager")  # the same states come to the layer
    p = opened(host, tiny)
    p.prefill()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float16, attn_implementation="eager")
    row = p.rows[0]
    with torch.no_grad():
        pixels = host.pixels([row.views[0]])
        out = model(input_ids=torch.from_numpy(row.ids)[None], pixel_values=pixels, output_attentions=True)
        for layer in (0, 2):
            cache = p.caches[layer]
            found = last_query(At(host.decoder, layer, cache.stream, cache, torch.tensor([0])))
            wanted = out.attentions[layer][0, :, -1, row.first[0] : row.first[0] + 16].float()
            assert torch.allclose(found[0], wanted, atol=1e-3)


@torch.no_grad()
def test_without_rotation_places_do_not_matter_and_equal_keys_get_equal_attention(folders, tiny):
    host = load_host(folders(decoder="qwen2"))
    p = opened(host, tiny)
    p.prefill()
    stream, rows = p.caches[1].stream, torch.tensor([0])
    at = At(host.decoder, 1, stream, None, rows)
    shifted = replace(at, stream=replace(stream, place=stream.place + 7))
    assert torch.equal(unrotated_query(shifted), unrotated_query(at))
    projection = host.decoder.layers[1].self_attn.k_proj
    projection.weight.zero_()
    projection.bias.normal_()
    flat, bent = unrotated_query(at)[0], last_query(at)[0]
    length = int(stream.length[0])
    assert torch.allclose(flat, torch.full_like(flat, 1 / length), atol=1e-6)
    assert (bent.amax(1) / bent.amin(1)).max() > 1.05


@torch.no_grad()
def twin(host, p, answer):
    """Log-probability of an answer when all is recomputed: the pass's merge, and log weights on every later key."""
    decoder, row = host.decoder, p.rows[0]
    ids = host.inputs.answer_ids(row, answer)
    start, (layer, merge) = row.first[0], p.opened.history[0][0]
    embedded = decoder.embed(torch.tensor([*row.ids.tolist(), *ids]))[None]
    embedded[0, start : start + 16] = p.states["projector"][0].x
    x, place, weight = embedded, torch.arange(embedded.shape[1])[None], torch.ones(1, embedded.shape[1])
    for index in range(decoder.depth):
        if index == layer:
            keep = merge.anchor[0] + start
            x = torch.cat([x[:, :start], apply(merge, x[:, start : start + 16]), x[:, start + 16 :]], dim=1)
            place = torch.cat([place[:, :start], keep[None], place[:, start + 16 :]], dim=1)
            members = merge.into[0, :, 0].clamp(min=-1) + 1
            count = members.bincount(minlength=len(keep) + 1)[1:].float()
            weight = torch.cat([weight[:, :start], count[None], weight[:, start + 16 :]], dim=1)
        s = x.shape[1]
        mask = torch.full((s, s), float("-inf")).triu(1) + weight.log()[0]
        rotation = decoder.rotation(x, place[..., None])
        x = decoder.layers[index](x, attention_mask=mask[None, None], position_embeddings=rotation)
    logp = decoder.logits(x[0]).log_softmax(-1)
    ids = [*ids, 3]
    return sum(logp[-len(ids) + i, token].item() for i, token in enumerate(ids))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("method", [{}, {"cutoff": 0.9, "share": 1.0}], ids=str)
def test_pact_equals_a_full_recomputation_with_log_weights(folders, tiny, attention, method):
    host = load_host(folders(text_tower=True))
    host.model.set_attn_implementation(attention)
    p = opened(host, tiny)
    p.prefill(make("prefill", "pact", **method), 0.5)
    layer, merge = p.opened.history[0][0]
    assert layer == 1 and merge.anchor.shape[1] <= 8 and (p.caches[1].weight > 1).any()
    for answer in ("red", "green thing two"):
        assert p.score([[answer]])[0].logprob[0] == pytest.approx(twin(host, p, answer), abs=1e-4)


def test_weights_of_one_row_are_not_its_batch_mates(host, tiny):
    methods, keeps = [make("prefill", "pact"), None, make("prefill", "fastv")], [0.5, 1.0, 0.25]
    p = opened(host, tiny, rows=3)
    p.prefill(methods, keeps)
    together = p.score([["red"], ["one"], ["left thing"]])
    for row in range(3):
        alone = host.open([tiny.picture(row)], tiny.questions[row : row + 1])
        alone.prefill(methods[row], keeps[row])
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
        (score,) = alone.score([[["red"], ["one"], ["left thing"]][row]])
        assert score.logprob == pytest.approx(together[row].logprob, abs=1e-4)


@torch.no_grad()
def test_a_pair_merged_with_its_weight_is_the_pair_for_everyone_else(host, tiny):
    p = opened(host, tiny)
    p.prefill()
    one = p.caches[2].stream
    s, at = one.x.shape[1], 9
    twice = torch.tensor([*range(at + 1), *range(at, s)])
    pair = replace(one, x=one.x[:, twice], place=one.place[:, twice], length=one.length + 1)
    heavy = replace(one, weight=torch.ones(1, s).index_fill(1, torch.tensor([at]), 2.0))
    both, _ = host.decoder.layer(2, pair, host.decoder.rotation(pair.x, pair.place))
    merged, _ = host.decoder.layer(2, heavy, host.decoder.rotation(heavy.x, heavy.place))
    plain, _ = host.decoder.layer(2, one, host.decoder.rotation(one.x, one.place))
    others = [i for i in range(s) if i != at]
    assert torch.allclose(merged[0, others], both[0, [i if i < at else i + 1 for i in others]], atol=1e-5)
    assert not torch.allclose(merged[0, at + 1 :], plain[0, at + 1 :], atol=1e-4)


@pytest.mark.parametrize("name", ["random", "look_m"])
def test_kept_cache_entries_keep_their_weights(host, tiny, name):
    p = opened(host, tiny, rows=2)
    p.prefill([make("prefill", "pact"), None], [0.5, 1.0])
    before = [cache.weight for cache in p.caches]
    p.choose_decode(make("decode", name), 0.5)
    assert before[0] is None and p.caches[0].weight is None
    for old, cache in zip(before[1:], p.caches[1:], strict=True):
        assert cache.weight.shape == (2, 2, cache.keys.shape[2])
        assert (cache.weight[1] == 1).all()
        kept = cache.weight[0, :, : int(cache.length[0])]
        assert kept.shape[1] == len(p.rows[0].text) + 4
        assert all(set(head.tolist()) <= set(old[0, 0].tolist()) for head in kept)
    assert p.score([["red"], ["one"]])[0].logprob[0] < 0


def test_adatp_spreads_a_budget_over_several_pictures(host, tiny):
    pictures = [[tiny.picture(0), tiny.picture(0), tiny.picture(1)]]
    p = host.open(pictures, ["left ?"])
    p.prefill(make("prefill", "adatp"), 0.25)
    assert p.counts["prefill"] == [12]
    places = [p.caches[-1].stream.position[0, p.caches[-1].stream.visual[0]]]
    frame, cell = places[0] // 16, places[0] % 16
    alike = cell[frame < 2]  # the first two are one picture: no place twice while there are others
    assert alike.unique().numel() == alike.numel() and int((frame == 2).sum()) >= 1

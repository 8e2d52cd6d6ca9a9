"""Signals of the tower equal what the model's own eager attention and states say."""

import pytest
import torch
from spying import spy

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal
from foveate.models.errors import HostError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("stage", ["outside", "encoder"])
def test_encoder_signals_are_the_models_attention(host, eager, tiny, stage):
    asked = [Signal(kind, 2) for kind in ("cls_attention", "received_attention", "keys")] + [Signal("keys", 0, "early")]
    method, found = spy(asked, stage, site=(2, 1))
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    (p.thin if stage == "outside" else p.encode)(method, 0.5)
    for row in range(2):
        vision, _ = eager({"text_tower": True}, p, row)
        maps = vision.attentions[2][0]
        assert torch.allclose(found["cls_attention"][row], maps[:, 0, 1:], atol=1e-5)
        assert torch.allclose(found["received_attention"][row], maps.mean(dim=(0, 1))[1:], atol=1e-5)
        for key, block in (("keys", 2), ("keys.early", 0)):
            layer = host.tower.layers[block]
            with torch.no_grad():
                k = layer.self_attn.k_proj(layer.layer_norm1(vision.hidden_states[block][0, 1:]))
            assert torch.allclose(found[key][row], k.unflatten(-1, (3, 8)).mean(1), atol=1e-5)


@pytest.mark.parametrize(("tower", "first"), [("clip", 1), ("siglip", 0)])
def test_a_map_is_the_models_attention_without_cls(hosts, eager, tiny, tower, first):
    host, (method, found) = hosts(tower=tower), spy([Signal("attention_map")], "encoder")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.encode(method, 0.5)
    vision, _ = eager({"tower": tower}, p)
    block = method.sites(16, 8, host.encoder_depth)[0][0]
    maps = vision.attentions[block][0].mean(0)
    assert torch.allclose(found["attention_map"][0], maps[first:, first:], atol=1e-5)


def test_block_states_are_the_models_hidden_states_at_no_cost(host, eager, tiny):
    asked = [Signal("block_states", layer, f"b{layer}") for layer in range(3)]
    method, found = spy(asked, "outside")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(method, 0.5)
    vision, _ = eager({"text_tower": True}, p)
    for layer in range(3):
        state = vision.hidden_states[layer + 1][:, 1:]
        assert torch.allclose(found[f"block_states.b{layer}"], state, atol=1e-4), layer
    assert ("outside", "signals") not in {(stage, what) for stage, what, *_ in p.ledger[0].entries}


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_states_of_cls_stand_at_every_token_or_the_mean_does(hosts, eager, tiny, tower):
    asked = [Signal("cls_states", layer, f"b{layer}") for layer in (0, 2)]
    host, (method, found) = hosts(tower=tower), spy(asked, "outside")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(method, 0.5)
    vision, _ = eager({"tower": tower}, p)
    for layer in (0, 2):
        state = vision.hidden_states[layer + 1][0]
        wanted = (state[0] if tower == "clip" else state.mean(0)).expand(16, -1)
        assert torch.allclose(found[f"cls_states.b{layer}"][0], wanted, atol=1e-4), layer


def test_block_states_follow_tokens_that_went_later(host, tiny):
    states = [Signal("block_states", 0, "early"), Signal("block_states", 2, "last")]
    method, found = spy(states, "projector")
    cutting, _ = spy([], "encoder", site=(1, 8))
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.encode(cutting, 0.5)
    p.project(method, 0.5)
    whole = host.open([tiny.picture(0)], [tiny.questions[0]])
    other, uncut = spy(states, "projector")
    whole.project(other, 0.5)
    assert torch.allclose(found["block_states.early"], uncut["block_states.early"][:, :8], atol=1e-5)
    assert torch.equal(found["block_states.last"][0], p.states["encoder"][0].x)


def test_a_map_of_an_earlier_block_is_refused_once_tokens_have_gone(host, tiny):
    method, _ = spy([Signal("attention_map", 0)], "outside")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.encode(make("encoder", "tome"), 0.5)
    with pytest.raises(HostError, match="attention_map: a map read in an earlier block does not follow"):
        p.thin(method, 0.5)


def test_a_method_that_takes_cls_gets_its_entries_too(host, eager, tiny):
    method, found = spy([Signal("cls_attention"), Signal("keys")], "outside", cls=True)
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(method, 0.5)
    vision, _ = eager({"text_tower": True}, p)
    assert torch.allclose(found["cls_attention"][0], vision.attentions[2][0][:, 0], atol=1e-5)
    assert found["keys"].shape == (1, 17, 8)


def test_a_tower_without_cls_gives_received_attention_as_one_head(hosts, eager, tiny):
    host = hosts(tower="siglip")
    method, found = spy([Signal("cls_attention"), Signal("received_attention")], "outside")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(method, 0.5)
    vision, _ = eager({"tower": "siglip"}, p)
    assert found["cls_attention"].shape == (1, 1, 16)
    assert torch.allclose(found["cls_attention"][0, 0], vision.attentions[2][0].mean(dim=(0, 1)), atol=1e-5)
    assert torch.equal(found["cls_attention"][:, 0], found["received_attention"])


def test_signals_follow_tokens_that_were_merged_after_the_block_was_read(host, tiny):
    method, found = spy([Signal("received_attention", 0), Signal("keys", 0)], "outside")
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.encode([make("encoder", "tome"), None], 0.5)
    p.thin([method, None], 0.5)
    plain, untouched = spy([Signal("received_attention", 0), Signal("keys", 0)], "outside")
    q = host.open([tiny.picture(0)], [tiny.questions[0]])
    q.thin(plain, 0.5)
    assert found["received_attention"].shape == (1, 8)
    assert found["received_attention"].sum().item() == pytest.approx(
        untouched["received_attention"].sum().item(), abs=1e-5
    )
    size = p.states["encoder"][0].size  # a merged key is the mean of its members, so weighted sums agree
    assert torch.allclose((found["keys"][0] * size[:, None]).sum(0), untouched["keys"][0].sum(0), atol=1e-4)
    alone = size == 1
    position = p.states["encoder"][0].position[alone]
    assert torch.allclose(found["keys"][0][alone], untouched["keys"][0][position], atol=1e-6)


def test_rows_that_went_different_ways_get_their_own_signals(host, tiny):
    images, questions = [tiny.picture(s) for s in range(3)], tiny.questions[:3]
    method, found = spy([Signal("keys")], "outside")
    p = host.open(images, questions)
    p.encode([make("encoder", "tome"), spy([], "encoder")[0], make("encoder", "tome")], 0.5)
    p.thin(method, 0.5)
    for row, way in enumerate([make("encoder", "tome"), spy([], "encoder")[0], make("encoder", "tome")]):
        watch, alone = spy([Signal("keys")], "outside")
        q = host.open(images[row : row + 1], questions[row : row + 1])
        q.encode(way, 0.5)
        q.thin(watch, 0.5)
        assert torch.allclose(found["keys"][row], alone["keys"][0], atol=1e-5)

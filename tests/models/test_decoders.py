"""Decoders with query and key norms, with three coordinates of rotation, with features added in their first layers."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLTextConfig, Qwen3Config, Qwen3Model, Qwen3VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from foveate.compressors.base import Reducer, Reduction
from foveate.models.behind import Continuation
from foveate.models.decoder import Decoder
from foveate.models.decoder_signals import At, last_query, last_state_attention, received
from foveate.models.inputs import Framed, Row, View
from foveate.models.prefill import Cut, Prefill
from foveate.models.prompt import embed_prompts, joined
from foveate.models.visual import VisualState, carried, leaving, stack

pytestmark = pytest.mark.fast

SIZES = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ROTATION = {"rope_type": "default", "rope_theta": 10000.0}
KINDS = {
    "qwen3": (Qwen3Model, Qwen3Config, {"head_dim": 8}),
    "qwen2_5_vl_text": (
        Qwen2_5_VLTextModel,
        Qwen2_5_VLTextConfig,
        {"rope_parameters": {**ROTATION, "mrope_section": [2, 1, 1]}},
    ),
    "qwen3_vl_text": (
        Qwen3VLTextModel,
        Qwen3VLTextConfig,
        {"head_dim": 8, "rope_parameters": {**ROTATION, "mrope_section": [2, 1, 1]}},
    ),
}
LEVELS = 2


@pytest.fixture(params=sorted(KINDS))
def host(request):
    """What prompts and prefill need of a host; random weights, wide enough that attention differs between tokens."""
    torch.manual_seed(0)
    model_class, config_class, own = KINDS[request.param]
    model = model_class(config_class(**SIZES, **own)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn_like(value) * (0.6 if "embed" in name else 1.2 / value[0].numel() ** 0.5))
            elif "q_norm" in name or "k_norm" in name:
                value.copy_(torch.rand_like(value) + 0.5)
    decoder = Decoder(model, nn.Linear(32, 20, bias=False))
    deepstack = LEVELS if request.param == "qwen3_vl_text" else 0
    return SimpleNamespace(decoder=decoder, device=torch.device("cpu"), shape=SimpleNamespace(deepstack=deepstack))


def row_of(host, before, grids, after, seed=0):
    """A row of pictures with a word between them, its places as Qwen counts them where the decoder has three."""
    ids, view, position, place, start = [], [], [], [], 0

    def words(count):
        nonlocal start
        for _ in range(count):
            ids.append(5 + len(ids) % 7), view.append(-1), position.append(-1), place.append([start] * 3)
            start += 1

    words(before)
    for number, (_, h, w) in enumerate(grids):
        for i in range(h * w):
            ids.append(4), view.append(number), position.append(i)
            place.append([start, start + i // w, start + i % w] if host.decoder.coordinates == 3 else [start + i] * 3)
        start += max(h, w) if host.decoder.coordinates == 3 else h * w
        words(1 if number < len(grids) - 1 else after)
    views = tuple(View(np.zeros((1, 1, 3), np.uint8), grid) for grid in grids)
    framed = tuple(Framed((each,), (), np.zeros(0), np.zeros(0), (1, 1)) for each in views)
    places = np.array(place)[:, : host.decoder.coordinates]
    return Row(framed, "", "", np.array(ids), np.array(view), np.array(position), places, seed)


def states_of(host, row, seed=1):
    """Random views behind the projector."""
    generator, found = torch.Generator().manual_seed(seed), []
    for number, view in enumerate(row.views):
        index = torch.arange(view.n)
        extra = torch.randn(view.n, LEVELS, 32, generator=generator) if host.shape.deepstack else None
        x = torch.randn(view.n, 32, generator=generator)
        place = torch.from_numpy(row.places[number])
        found.append(VisualState(x, torch.ones(view.n), index, index, place, view.grid, extra=extra))
    return found


def opened(host, rows, states):
    stream = embed_prompts(host, rows, states)
    grids, whole = zip(*(joined([s.grid for s in own], all(s.whole for s in own)) for own in states), strict=True)
    return Prefill(host.decoder, stream, torch.tensor([row.seed for row in rows]), grids, whole)


def whole(host, row, states):
    """(S, D) embeddings, (S, L, D) what is added, (S,) which are visual: entry by entry."""
    x, visual = host.decoder.embed(torch.from_numpy(row.ids)).clone(), torch.from_numpy(row.view >= 0)
    extra = torch.zeros(len(x), LEVELS, 32)
    for number, state in enumerate(states):
        x[torch.from_numpy(row.view == number)] = state.x
        if state.extra is not None:
            extra[torch.from_numpy(row.view == number)] = state.extra
    return x, extra, visual


ROWS = [(2, ((1, 2, 3), (1, 3, 2)), 3), (1, ((1, 3, 3),), 2), (3, ((1, 2, 2), (1, 2, 2), (1, 1, 4)), 1)]


@torch.no_grad()
def test_uncompressed_rows_give_the_models_own_logits(host):
    rows = [row_of(host, *each, seed=i) for i, each in enumerate(ROWS)]
    states = [states_of(host, row, i) for i, row in enumerate(rows)]
    run = opened(host, rows, states)
    logits = run.finish([None] * 3, None)
    for i, (row, views) in enumerate(zip(rows, states, strict=True)):
        x, extra, visual = whole(host, row, views)
        more = {}
        if host.shape.deepstack:
            more = {"visual_pos_masks": visual[None], "deepstack_visual_embeds": list(extra[visual].unbind(1))}
        place = torch.from_numpy(row.place).T[:, None]
        place = place[0] if host.decoder.coordinates == 1 else place
        model = host.decoder.model
        hidden = model(inputs_embeds=x[None], position_ids=place, use_cache=False, **more).last_hidden_state
        assert torch.allclose(logits[i], host.decoder.head(hidden[0, -1]), atol=1e-5)
        behind = Continuation(host.decoder, run.caches, torch.tensor([i])).feed(torch.tensor([[7, 9]]))
        again = torch.cat([x, host.decoder.embed(torch.tensor([7, 9]))])[None]
        on = row.place.max() + 1 + torch.arange(2)
        on = on[None] if host.decoder.coordinates == 1 else on.expand(3, 1, 2)
        if more:
            more["visual_pos_masks"] = torch.cat([visual, torch.zeros(2, dtype=torch.bool)])[None]
        places = torch.cat([place, on], dim=-1)
        hidden = model(inputs_embeds=again, position_ids=places, use_cache=False, **more).last_hidden_state
        assert torch.allclose(model.norm(behind[0, -1]), hidden[0, -1], atol=1e-5)


@dataclass(frozen=True)
class Pairs(Reducer):
    """Merges neighbours two by two before one layer, or drops every second where it does not merge."""

    name = "pairs"
    stages = ("prefill",)
    policy: str = "keep"
    merges: bool = True

    @property
    def positions(self):
        return self.policy

    def plan(self, tokens, count):
        b, n = tokens.position.shape
        anchor = torch.arange(0, n, 2).expand(b, -1)
        if not self.merges:
            return Reduction(anchor)
        size = torch.arange(n) // 2
        weight = torch.full((b, n, 1), 0.5)
        if n % 2:
            weight[:, -1] = 1.0
        return Reduction(anchor, size.expand(b, -1)[..., None], weight)


def slots(n, merges):
    """(k, n) which token adds how much to which slot of `Pairs`."""
    k = -(-n // 2)
    out = torch.zeros(k, n)
    for slot in range(k):
        members = range(2 * slot, min(2 * slot + 2, n)) if merges else [2 * slot]
        for token in members:
            out[slot, token] = 1 / len(members)
    return out


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize(
    ("policy", "merges"), [("keep", True), ("mean", True), ("renumber", True), ("renumber", False)]
)
def test_cuts_equal_a_slow_twin_with_three_coordinates_and_added_features(host, layer, policy, merges):
    rows = [row_of(host, *each, seed=i) for i, each in enumerate(ROWS)]
    states = [states_of(host, row, i) for i, row in enumerate(rows)]
    run = opened(host, rows, states)
    cuts = [Cut(Pairs(policy, merges), {layer: -(-int(n) // 2)}) for n in run.stream.n]
    logits = run.finish(cuts, lambda *_: {})
    decoder, three = host.decoder, host.decoder.coordinates == 3
    for i, (row, views) in enumerate(zip(rows, states, strict=True)):
        x, extra, visual = whole(host, row, views)
        place = torch.from_numpy(row.place)
        for index, block in enumerate(decoder.layers):
            if index == layer:
                at = visual.nonzero()[:, 0]
                make = slots(len(at), merges)
                anchors = at[::2]
                x[anchors], extra[anchors] = make @ x[at], (make @ extra[at].flatten(1)).unflatten(1, (LEVELS, 32))
                if policy == "mean":
                    place[anchors] = (make @ place[at].float() + 1e-4).long()
                keep = ~visual
                keep[anchors] = True
                x, extra, visual, place = x[keep], extra[keep], visual[keep], place[keep]
                if policy == "renumber" and (merges or not three):  # a selection keeps its three coordinates
                    place = torch.arange(len(x))[:, None].expand(-1, place.shape[1])
            s = len(x)
            mask = torch.ones(1, 1, s, s, dtype=torch.bool).tril()
            x = block(x[None], attention_mask=mask, position_embeddings=decoder.rotation(x, place[None]))[0]
            if host.shape.deepstack and index < LEVELS:
                x = x + extra[:, index]
        assert torch.allclose(logits[i], decoder.logits(x[-1]), atol=1e-5)
        assert run.caches[layer].stream.place[i, : len(place)].tolist() == place.tolist()
        numbered = policy == "renumber" and (merges or not three)
        assert int(run.stream.next_place[i]) == (len(place) if numbered else row.place.max() + 1)


@torch.no_grad()
def test_signals_are_the_models_attention(host):
    rows = [row_of(host, *ROWS[0]), row_of(host, *ROWS[1], seed=1)]
    states = [states_of(host, row, i) for i, row in enumerate(rows)]
    run = opened(host, rows, states)
    run.step()
    host.decoder.config._attn_implementation = "eager"  # the layer gives its attention back then
    for i in range(2):
        stream = run.caches[0].stream.at(torch.tensor([i]))
        s = int(stream.length[0])
        stream = type(stream)(**{k: v[:, :s] if v is not None and v.ndim > 1 else v for k, v in vars(stream).items()})
        block, rotation = host.decoder.layers[0], host.decoder.rotation(stream.x, stream.place)
        mask = torch.zeros(1, 1, s, s).masked_fill(~torch.ones(s, s, dtype=torch.bool).tril(), -1e9)
        _, attention = block.self_attn(
            block.input_layernorm(stream.x), attention_mask=mask, position_embeddings=rotation
        )
        at = At(host.decoder, 0, run.caches[0].stream, run.caches[0], torch.tensor([i]))
        last = last_query(at)
        assert torch.allclose(last[0], attention[0, :, -1][:, stream.visual[0]], atol=1e-5)
        fresh = last_query(replace(at, cache=None))
        assert torch.allclose(fresh, last, atol=1e-5)
        assert np.allclose(last_state_attention(run, i), attention[0, :, -1].mean(0).numpy(), atol=1e-5)
        sums = received(host.decoder, run.caches[0], 0, torch.tensor([i]))
        assert torch.allclose(sums[0], attention[0].sum(1).view(2, 2, -1).sum(1), atol=1e-4)


def test_places_are_averaged_in_each_coordinate_and_lost_slots_stand_last(host):
    row = row_of(host, 2, ((1, 2, 3),), 1)
    state = states_of(host, row)[0]
    _, riders = stack([state], [0])
    into = torch.tensor([[[0], [1], [0], [1], [1], [2]]])
    weight = torch.full((1, 6, 1), 0.5)
    merged = carried(riders, Reduction(torch.tensor([[2, 1, -1]]), into, weight), "mean")
    place = riders.place[0]
    means = [place[[0, 2]], place[[1, 3, 4]], place[[5]]]
    assert merged.place[0].tolist() == [[int(v + 1e-4) for v in each.float().mean(0)] for each in means]
    assert merged.origin.tolist() == [[2, 1, 5]] and merged.size.tolist() == [[2.0, 3.0, 1.0]]
    left, _ = leaving(merged)
    assert left.origin.tolist() == [[1, 2, 5]] and left.place[0, 2].tolist() == place[5].tolist()
    kept = carried(riders, Reduction(torch.tensor([[4, 0]])), "renumber")
    assert kept.renumber == (host.decoder.coordinates == 1)
    assert kept.place[0].tolist() == place[[4, 0]].tolist()

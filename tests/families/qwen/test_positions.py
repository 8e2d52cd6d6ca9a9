"""Position ids in three coordinates: kept or renumbered as a method says; what is gone is gone for every layer."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from foveate.compressors.base import Reducer, Reduction, Selector
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


def opened(host, tiny):
    return host.open([[tiny.picture(0, 32, 48), tiny.picture(1, 24, 16)]], ["what is this ?"])


@torch.no_grad()
def masked(model, row, dropped, from_layer):
    """HF's layers over the whole prompt, where from a layer on no query sees the dropped entries."""
    text, visual = model.model.language_model, model.model.visual
    s = len(row.ids)
    x = text.embed_tokens(torch.from_numpy(row.ids))
    levels = []
    for number, view in enumerate(row.views):
        patches, grid = _patches(view), torch.tensor([[1, 2 * view.grid[1], 2 * view.grid[2]]])
        out = visual(patches, grid_thw=grid)
        at = torch.from_numpy(row.view == number)
        x[at] = out.pooler_output
        levels.append([(at, f) for f in getattr(out, "deepstack_features", None) or []])
    x = x[None]
    place = torch.from_numpy(row.place).T[:, None]
    rotation = text.rotary_emb(x, place)
    causal = torch.ones(s, s, dtype=torch.bool).tril()
    for index, layer in enumerate(text.layers):
        seen = causal.clone()
        if index >= from_layer:
            seen[:, dropped] = False
            seen |= torch.eye(s, dtype=torch.bool)
        x = layer(x, attention_mask=seen[None, None], position_embeddings=rotation)
        for view in levels:
            if index < len(view):
                at, features = view[index]
                x[0, at] = x[0, at] + features
    return model.lm_head(text.norm(x))[0, -1]


def _patches(view):
    pixels = torch.tensor(view.pixels).permute(2, 0, 1).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    rows, view = [], (pixels - mean) / std
    for y in range(0, view.shape[1], 8):
        for x in range(0, view.shape[2], 8):
            for dy in (0, 4):
                for dx in (0, 4):
                    rows.append(view[:, y + dy : y + dy + 4, x + dx : x + dx + 4][:, None].expand(3, 2, 4, 4).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("stage", ["outside", "prefill"])
@pytest.mark.parametrize("ratio", [0.5, 0.1])
def test_a_selection_equals_a_run_in_which_nobody_sees_what_was_dropped(host, kind, original, tiny, stage, ratio):
    p, layer = opened(host, tiny), 0
    if stage == "outside":
        p.thin(make(stage, "stride"), ratio)
        p.prefill()
    else:
        p.prefill(EarlyCut(), ratio)
        layer = 1  # within the layers that deepstack features are added to
    row, kept = p.rows[0], set(shown(p)[0].tolist())
    dropped = [e for e in range(len(row.ids)) if row.view[e] >= 0 and e not in kept]
    assert 0 < len(dropped) == 30 - p.counts["prefill"][0]
    wanted = masked(original(kind), row, dropped, layer)
    assert torch.allclose(p.logits[0], wanted, atol=1e-4)
    untouched = opened(host, tiny)
    untouched.prefill()
    assert not torch.allclose(p.logits[0], untouched.logits[0], atol=1e-2)


class EarlyCut(Selector):
    """Keeps every token at an even position first, and cuts before layer 1."""

    name, stages = "early", ("prefill",)

    def sites(self, n, count, depth):
        return [(1, count)]

    def score(self, tokens):
        return (tokens.position % 2 == 0).float()


def shown(p):
    """Entries of the uncompressed prompt and places (k, 3) of a row's visual tokens in the last layer."""
    stream = p.caches[-1].stream
    return stream.entry[0][stream.visual[0]], stream.place[0][stream.visual[0]]


@pytest.mark.parametrize("cell", [("outside", "stride"), ("outside", "diversity"), ("prefill", "pyramiddrop")], ids=str)
def test_a_selection_keeps_its_places_even_where_the_method_renumbers(host, tiny, cell):
    p = opened(host, tiny)
    method = make(*cell)
    p.thin(method, 0.5) if cell[0] == "outside" else p.prefill(method, 0.5)
    p.decode(max_new_tokens=1)
    entry, place = shown(p)
    assert len(entry) < 30
    assert place.tolist() == p.rows[0].place[entry].tolist()
    assert int(p.caches[-1].next_place) == p.rows[0].place.max() + 1


def test_tokens_that_merge_are_renumbered_where_the_method_says_so(host, tiny):
    p = opened(host, tiny)
    p.thin(make("outside", "tome"), 0.5)
    p.prefill()
    stream = p.caches[-1].stream
    s = int(stream.length)
    assert p.counts["prefill"] == [15]
    assert stream.place[0].tolist() == [[i] * 3 for i in range(s)]
    assert int(p.caches[-1].next_place) == s


class MeanOfPairs(Reducer):
    """Puts tokens 2i and 2i + 1 together; a slot stands at the mean of its tokens' places."""

    name, stages, positions = "pairs", ("outside", "projector"), "mean"

    def plan(self, tokens, count):
        b, n = tokens.size.shape
        into = (torch.arange(n) // 2).expand(b, n)[..., None]
        return Reduction(torch.arange(0, n, 2).expand(b, -1), into, torch.full((b, n, 1), 0.5))


def test_a_mean_of_places_is_taken_in_each_coordinate(host, tiny):
    p = host.open([tiny.picture(0, 32, 48)], ["left ?"])  # 4 x 6 tokens behind three words
    p.thin(MeanOfPairs(), 0.5)
    p.prefill()
    entry, place = shown(p)
    assert place.tolist() == [[3, 3 + h, 3 + 2 * w] for h in range(4) for w in range(3)]  # 3.5 and the like, truncated
    assert entry.tolist() == list(range(3, 27, 2))


@torch.no_grad()
def test_levels_go_the_way_of_the_features(hosts, tiny):
    host = hosts("qwen3_vl")
    p = host.open([tiny.picture(0, 32, 48)], ["left ?"])
    p.encode()
    units, extra = p.states["encoder"][0].x, p.states["encoder"][0].extra
    assert extra.shape == (24, 2, 128)
    p.thin(MeanOfPairs(), 0.5)
    assert torch.allclose(p.states["outside"][0].x, units.unflatten(0, (12, 2)).mean(1), atol=1e-6)
    assert torch.allclose(p.states["outside"][0].extra, extra.unflatten(0, (12, 2)).mean(1), atol=1e-6)
    q = host.open([tiny.picture(0, 32, 48)], ["left ?"])
    q.project(MeanOfPairs(), 0.5)  # behind the projector: means of what the mergers made
    levels = host.project_extra(extra)
    assert torch.allclose(q.states["projector"][0].extra, levels.unflatten(0, (12, 2)).mean(1), atol=1e-6)
    q.prefill()
    stream = q.caches[0].stream
    assert torch.equal(stream.extra[0][stream.visual[0]], q.states["projector"][0].extra)
    assert not stream.extra[0][~stream.visual[0]].any()


@torch.no_grad()
def test_levels_change_what_the_decoder_reads(hosts, tiny):
    host = hosts("qwen3_vl")
    p = host.open([tiny.picture(0, 32, 48)], ["left ?"])
    p.project()
    without = [replace(state, extra=torch.zeros_like(state.extra)) for state in p.states["projector"]]
    q = host.open([tiny.picture(0, 32, 48)], ["left ?"])
    q.project()
    q.states["projector"] = without
    p.prefill()
    q.prefill()
    assert (p.logits - q.logits).abs().max() > 1e-2


@torch.no_grad()
def test_signals_of_a_token_are_those_of_its_patches(hosts, kind, tiny):
    """Attention of every block by loops over windows; folded over the four patches of a unit."""
    host = hosts(kind)
    p = host.open([tiny.picture(0, 24, 40)], ["left ?"])  # 3 x 5 tokens
    p.encode()
    group, _ = p.traces[0]
    tower = host.tower
    for block in range(tower.depth):
        asked = [Signal("received_attention", block), Signal("cls_attention", block), Signal("keys", block)]
        found = p.ask.of_block([0], block, asked, "outside")
        q, k = tower.queries_keys(block, group.inputs[block].x, 60, (1, 3, 5))
        windows = tower.windows(block, (1, 3, 5))
        windows = torch.zeros(60) if windows is None else windows
        received = torch.zeros(15)
        for one in windows.unique():
            at = (windows == one).nonzero()[:, 0]
            weight = (q[0][:, at] @ k[0][:, at].transpose(1, 2) * 16**-0.5).softmax(-1)
            for column, patch in enumerate(at.tolist()):
                received[patch // 4] += weight[:, :, column].sum() / (2 * 60)
        assert torch.allclose(found["received_attention"][0], received, atol=1e-5)
        assert torch.allclose(found["cls_attention"][0, 0], received, atol=1e-5)
        assert float(received.sum()) == pytest.approx(1, abs=1e-4)
        means = torch.stack([k[0][:, 4 * u : 4 * u + 4].mean(dim=(0, 1)) for u in range(15)])
        assert torch.allclose(found["keys"][0], means, atol=1e-6)


def test_a_smaller_picture_is_the_model_on_a_smaller_picture(host, tiny):
    image = tiny.picture(0, 32, 48)
    p = host.open([image], ["what is this ?"])
    p.resize(make("input", "downsample"), 0.5)
    p.decode(max_new_tokens=6)
    (grid,) = [view.grid for view in p.laid[0].views]
    assert grid[1] * grid[2] <= 12
    small = Image.fromarray(image).resize((8 * grid[2], 8 * grid[1]), Image.Resampling.BICUBIC)
    q = host.open([small], ["what is this ?"])
    q.decode(max_new_tokens=6)
    assert q.rows[0].views[0].grid == grid
    assert torch.allclose(p.logits, q.logits, atol=1e-5)
    assert p.generated == q.generated


def test_another_question_about_the_same_pictures_takes_up_what_is_there(host, tiny):
    p = opened(host, tiny)
    p.thin(make("outside", "stride"), 0.5)
    p.decode(max_new_tokens=5)
    again = p.next_turn(["is the thing red or blue ?"])
    again.decode(max_new_tokens=5)
    fresh = host.open([[tiny.picture(0, 32, 48), tiny.picture(1, 24, 16)]], ["is the thing red or blue ?"])
    fresh.thin(make("outside", "stride"), 0.5)
    fresh.decode(max_new_tokens=5)
    assert again.generated == fresh.generated
    assert torch.allclose(again.logits, fresh.logits, atol=1e-5)


@torch.no_grad()
def test_attention_received_does_not_depend_on_how_many_queries_are_held_at_a_time(host, tiny, monkeypatch):
    p = host.open([tiny.picture(0, 24, 40)], ["left ?"])
    p.encode()
    asked = [Signal("received_attention", 0)]
    whole = p.ask.of_block([0], 0, asked, "outside")["received_attention"]
    monkeypatch.setattr("foveate.models.signals.QUERIES", 7)
    assert torch.allclose(p.ask.of_block([0], 0, asked, "outside")["received_attention"], whole, atol=1e-6)

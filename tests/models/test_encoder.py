"""The tower with reductions inside, smaller pictures, and what happens between tower and decoder."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from foveate.compressors.base import InputKnob, Reducer, Reduction, Resampled, Resampler, Selector
from foveate.compressors.registry import make
from foveate.models.errors import CountMismatch, HostError, WrongStop

pytestmark = pytest.mark.fast


@dataclass(frozen=True)
class Dropper(Reducer):
    """Keeps named tokens in the block it is told, in any order."""

    name = "dropper"
    stages = ("encoder", "outside")
    kept: tuple[int, ...] = (9, 2, 4)
    block: int = 1
    policy: str = "keep"

    @property
    def positions(self):
        return self.policy

    def sites(self, n, count, depth):
        return [(self.block, len(self.kept))]

    def plan(self, tokens, count):
        return Reduction(torch.tensor([self.kept] * tokens.x.shape[0]))


def pixels(host, p):
    return host.pixels([row.views[0] for row in p.rows])


@pytest.mark.parametrize("settings", [{"tower": "clip"}, {"tower": "siglip"}], ids=str)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_dropping_inside_a_block_equals_dropping_between_the_models_own_blocks(hosts, tiny, settings, block):
    host = hosts(**settings)
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.encode(Dropper(block=block), 0.2)
    tower = host.model.model.vision_tower
    with torch.no_grad():
        x = host.tower.norm_in(tower.embeddings(pixels(host, p)))
        first = host.tower.first
        for index, layer in enumerate(tower.encoder.layers[: host.tower.depth]):
            x = layer(x, attention_mask=None)
            if index == block:
                x = torch.cat([x[:, :first], x[:, first:][:, [2, 4, 9]]], dim=1)
    for row in range(2):
        assert torch.allclose(p.tokens[row].x, x[row, first:], atol=1e-5)
        assert p.tokens[row].position.tolist() == [2, 4, 9]
        assert p.tokens[row].place.tolist() == [[2], [4], [9]]
    p.prefill()
    assert p.opened.stream.next_place.tolist() == [len(row.ids) for row in p.rows]
    assert p.logits.isfinite().all()


def test_renumbering_closes_the_gap_before_the_text(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.encode(Dropper(policy="renumber"), 0.2)
    assert p.tokens[0].position.tolist() == [2, 4, 9]
    p.peek()
    stream = p.opened.stream
    assert stream.place[0, :, 0].tolist() == list(range(int(stream.length[0])))
    assert int(stream.next_place[0]) == int(stream.length[0]) == p.shapes[0].n_text + 3


def test_proportional_attention_to_a_merged_pair_is_attention_to_both(host):
    tower = host.tower
    torch.manual_seed(0)
    x = torch.randn(1, 6, 24)
    x[:, 5] = x[:, 3]
    with torch.no_grad():
        both, _, _ = tower.attend(1, x, None, host.grid)
        merged, _, _ = tower.attend(1, x[:, :5], torch.tensor([[1.0, 1, 1, 2, 1]]).log(), host.grid)
    assert torch.allclose(both[:, :5], merged, atol=1e-6)


def test_tome_keeps_the_count_the_mass_and_the_order_of_places(host, tiny):
    p = host.open([tiny.picture(s) for s in range(3)], tiny.questions[:3])
    p.encode(make("encoder", "tome"), 0.4)
    for state in p.tokens:
        assert state.n == 6
        assert state.size.sum().item() == pytest.approx(16)
        assert state.position.tolist() == sorted(state.position.tolist())
        assert len(set(state.position.tolist())) == 6
        assert state.place[:, 0].tolist() == state.origin.tolist() == sorted(state.origin.tolist())
        assert state.renumber
    group, _ = p.traces[0]
    assert group.inputs[0].bias is None
    assert group.inputs[2].bias.shape == (3, 1 + group.counts[2][0])
    assert (group.inputs[2].bias[:, 0] == 0).all()  # CLS counts once
    assert group.inputs[2].bias.max() >= np.log(2) - 1e-6


def test_tome_sees_the_keys_of_the_block_in_which_it_acts(host, tiny):
    seen = []

    @dataclass(frozen=True)
    class Watch(type(make("encoder", "tome"))):
        def plan(self, tokens, count):
            seen.append((tokens.site, tokens.signals["keys"], tokens.x))
            return super().plan(tokens, count)

    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.encode(Watch(), 0.4)
    group, _ = p.traces[0]
    assert [site for site, _, _ in seen] == [0, 1, 2]
    for block, (_, keys, _) in enumerate(seen):
        layer = host.tower.layers[block]
        with torch.no_grad():
            k = layer.self_attn.k_proj(layer.layer_norm1(group.inputs[block].x[:, 1:]))
        assert torch.allclose(keys, k.unflatten(-1, (3, 8)).mean(2), atol=1e-5)


@dataclass(frozen=True)
class Choosy(Selector):
    """Keeps as many as the first seed bit says: an adaptive method."""

    name = "choosy"
    stages = ("encoder", "outside", "prefill")
    adaptive = True

    def sites(self, n, count, depth):
        return [(1, count)]

    def score(self, tokens):
        return -torch.arange(tokens.n).float().expand(tokens.x.shape[0], -1)

    def plan(self, tokens, count):
        used = torch.tensor([count if int(s) % 2 else count - 2 for s in tokens.seed])
        anchor = super().plan(tokens, count).anchor
        return Reduction(anchor.masked_fill(torch.arange(count)[None] >= used[:, None], -1), count=used)


@pytest.mark.parametrize("stage", ["encode", "thin", "prefill"])
def test_adaptive_rows_part_and_stay_independent(host, tiny, stage):
    images, questions = [tiny.picture(s) for s in range(6)], [tiny.questions[s % 4] for s in range(6)]
    p = host.open(images, questions)
    getattr(p, stage)(Choosy(), 0.5)
    name = {"encode": "encoder", "thin": "outside", "prefill": "prefill"}[stage]
    wanted = [8 if row.seed % 2 else 6 for row in p.rows]
    assert p.counts[name] == wanted
    assert set(wanted) == {6, 8}
    if stage != "prefill":
        p.prefill()
    for row in range(6):
        alone = host.open(images[row : row + 1], questions[row : row + 1])
        getattr(alone, stage)(Choosy(), 0.5)
        if stage != "prefill":
            alone.prefill()
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
        assert alone.ledger[0] == p.ledger[row]


@dataclass(frozen=True)
class Smaller(InputKnob):
    name = "smaller"
    stages = ("input",)
    grid: tuple[int, int, int] = (1, 2, 3)

    def target(self, grid, count):
        return self.grid


def test_a_smaller_picture_is_what_the_model_makes_of_it(folders, host, tiny):
    image = tiny.picture(7)
    p = host.open([image], [tiny.questions[0]])
    p.resize(Smaller(), 0.5)
    p.prefill()
    small = np.asarray(Image.fromarray(image).resize((24, 16), Image.Resampling.BICUBIC))
    values = host.inputs.processor.image_processor([small], do_resize=False, do_center_crop=False, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folders(text_tower=True))
    row = p.rows[0]
    before, after = tiny.sides(row)
    ids = torch.tensor([[*before, *[4] * 6, *after]])
    with torch.no_grad():
        feature = model.model.vision_tower(
            values["pixel_values"], interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states[-2][:, 1:]
        embeds = model.get_input_embeddings()(ids)
        embeds[0, len(before) : len(before) + 6] = model.model.multi_modal_projector(feature)[0]
        wanted = model(inputs_embeds=embeds).logits[0, -1]
    assert torch.allclose(p.logits[0], wanted, atol=1e-5)
    assert p.counts["input"] == [6]


def test_visionzip_may_keep_cls_and_its_tokens_are_counted(host, tiny):
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.thin(make("outside", "visionzip"), 0.25)
    for state, before in zip(p.tokens, p.states["encoder"], strict=True):
        assert state.n == 4
        assert state.position[0] == -1
        assert torch.equal(state.x[0], before.cls)
        assert state.renumber and state.place[0].tolist() == [0]
    p.prefill()
    assert p.opened.stream.place[1, :, 0].tolist() == list(range(p.shapes[1].n_text + 4))
    assert p.counts["prefill"] == [4, 4]


def test_a_protected_cls_is_read_but_never_counted(hosts, tiny):
    host = hosts(strategy="full")
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(make("outside", "stride"), 0.25)
    p.prefill()
    assert p.counts["prefill"] == [4]
    assert p.cached[0] == [p.shapes[0].n_text + 1 + 4] * 4
    zipped = host.open([tiny.picture(0)], [tiny.questions[0]])
    zipped.thin(make("outside", "visionzip"), 0.25)  # it was handed CLS and kept it among its four
    zipped.prefill()
    assert zipped.cached[0] == [p.shapes[0].n_text + 4] * 4


@pytest.mark.parametrize("hook", ["before", "after"])
def test_a_pooling_before_or_after_the_projector_is_just_that(host, tiny, hook):
    @dataclass(frozen=True)
    class Pool(Resampler):
        name = "pool"
        stages = ("projector",)
        positions = "renumber"
        emits_grid = True

        def reachable(self, grid):
            return [4]

        def make_tokens(self, tokens, count):
            b, _, d = tokens.x.shape
            cells = tokens.x.view(b, 2, 2, 2, 2, d).mean(dim=(2, 4)).view(b, 4, d)
            return Resampled(cells, torch.tensor([[0, 2, 8, 10]] * b), (1, 2, 2))

    Pool.hook = hook
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.project(Pool(), 0.25)
    with torch.no_grad():
        feature = p.states["outside"][0].x
        cells = lambda x: x.view(2, 2, 2, 2, -1).mean(dim=(1, 3)).view(4, -1)  # noqa: E731
        wanted = host.project(cells(feature)) if hook == "before" else cells(host.project(feature))
    (state,) = p.tokens
    assert torch.allclose(state.x, wanted, atol=1e-5)
    assert (state.grid, state.whole, state.position.tolist()) == ((1, 2, 2), True, [0, 1, 2, 3])
    assert state.size.tolist() == [4.0] * 4
    charged = {
        what: flops for stage, what, flops, kind in p.ledger[0].entries if stage == "projector" and kind == "matrix"
    }
    assert charged["projector"] == 2 * (4 if hook == "before" else 16) * (24 * 32 + 32 * 32)


def test_a_grid_method_behind_an_irregular_drop_is_refused(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(make("outside", "random"), 0.5)
    with pytest.raises(HostError, match="average_pool: needs a whole grid; 8 tokens of a 4 x 4 grid are left"):
        p.project(make("projector", "average_pool"), 0.5)


def test_a_stage_that_has_passed_is_refused(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.thin(None)
    with pytest.raises(WrongStop, match="encoder: has passed, the pass stands behind 'outside'"):
        p.encode(make("encoder", "tome"), 0.5)
    with pytest.raises(WrongStop, match="blind"):
        p.blind()


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ([[0, 1]], "gave 2 slots in 1 rows; asked for 4 in 1"),
        ([[0, 0, 1, 2]], "anchors are not unique tokens of 0..15"),
        ([[0, 1, 2, 16]], "anchors are not unique tokens of 0..15"),
    ],
)
def test_a_method_that_breaks_its_word_is_named(host, tiny, anchors, message):
    @dataclass(frozen=True)
    class Liar(Reducer):
        name = "liar"
        stages = ("outside",)

        def plan(self, tokens, count):
            return Reduction(torch.tensor(anchors))

    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    with pytest.raises(CountMismatch, match=f"liar: {message}"):
        p.thin(Liar(), 0.25)

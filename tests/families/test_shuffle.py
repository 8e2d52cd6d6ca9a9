"""Towers, tiles, units and prompts of InternVL, SmolVLM and Idefics3, against what transformers makes of them."""

import numpy as np
import pytest
import tiny_shuffle as tiny
import torch
from tiny_shuffle import FAMILIES, IDEFICS3, INTERNVL, MARKER, PATCH, QUESTIONS, SIDE, SMOLVLM, TOKENS, VIEW

from foveate.models.errors import BadInput, HostError, UnsupportedModel
from foveate.models.families.internvl import InternVLInputs, InternVLTower
from foveate.models.families.shuffle import folded, in_units
from foveate.models.families.smolvlm import SmolVLMInputs, SmolVLMTower
from foveate.models.processors import Parts
from foveate.models.signals import tower_signal

pytestmark = pytest.mark.fast

SIZES = [(40, 40), (40, 90), (90, 40), (20, 20), (33, 140), (300, 31), (64, 65), (3, 7)]
GRID = {family: (1, *(VIEW[family] // PATCH // SIDE[family],) * 2) for family in FAMILIES}


def tower_of(family, model):
    if family == INTERNVL:
        return InternVLTower(model.model.vision_tower, model.config.vision_feature_layer, SIDE[family])
    return SmolVLMTower(model.model.vision_model, SIDE[family])


def inputs_of(family, **settings):
    reference = tiny.processor(family, **settings)
    token = reference.tokenizer.convert_tokens_to_ids(MARKER[family])
    if family == INTERNVL:
        return InternVLInputs(reference, token, SIDE[family], PATCH), reference
    parts = Parts(reference.image_processor, reference.tokenizer, reference.chat_template)
    return SmolVLMInputs(parts, token, SIDE[family], PATCH), reference


def connector_of(family, model):
    if family == INTERNVL:
        return model.model.multi_modal_projector
    return model.model.connector.modality_projection


def walked(tower, pixels, grid):
    """Each block's input and the last one's output."""
    states = [tower.embed(pixels, grid)]
    for layer in range(tower.depth):
        states.append(tower.mlp(layer, tower.attend(layer, states[-1], None, grid)[0]))
    return states


def noise(family, number=2, height=None, width=None, seed=0):
    torch.manual_seed(seed)
    return torch.randn(number, 3, height or VIEW[family], width or VIEW[family])


VARIANTS = [
    (INTERNVL, {}),
    (INTERNVL, {"use_qk_norm": True}),
    (INTERNVL, {"norm_type": "rms_norm", "attention_bias": True}),
    (INTERNVL, {"use_mean_pooling": False}),
    (INTERNVL, {"use_mean_pooling": False, "vision_feature_layer": -2}),
    (INTERNVL, {"use_absolute_position_embeddings": False, "vision_feature_layer": 4}),
    (SMOLVLM, {}),
    (SMOLVLM, {"image_size": 48}),
    (IDEFICS3, {}),
    (IDEFICS3, {"image_size": 20}),
]


@pytest.mark.parametrize(("family", "vision"), VARIANTS, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_what_reaches_the_decoder_is_what_the_model_gives_it(family, vision, attention):
    model = tiny.model(family, **vision)
    model.set_attn_implementation(attention)
    tower, pixels = tower_of(family, model), noise(family)
    units = tower.tokens(walked(tower, pixels, GRID[family])[-1][:, tower.first :], GRID[family])
    assert units.shape == (2, TOKENS[family], SIDE[family] ** 2 * 24) and units.shape[-1] == tower.merge * 24
    if family == INTERNVL:
        wanted = model.model.get_image_features(pixels, return_dict=True).pooler_output
    else:
        wanted = model.model.get_image_features(pixels[None], return_dict=True).pooler_output[0].unflatten(0, (2, -1))
    assert torch.allclose(connector_of(family, model)(units), wanted, atol=1e-5)
    assert wanted.std() > 0.1  # not all alike: layer scale and norms are away from their initial values


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_units_are_the_connectors_own(family):
    model, side = tiny.model(family), SIDE[family]
    states = torch.randn(3, TOKENS[family] * side**2, 24)
    ours = in_units(states, GRID[family], side)
    along = GRID[family][1] * side
    if family == INTERNVL:
        shuffled = model.model.pixel_shuffle(states.unflatten(1, (along, along)), 1 / side).flatten(1, 2)
        whole = model.model.multi_modal_projector(shuffled)
    else:
        shuffled = model.model.connector.pixel_shuffle(states, side)
        whole = model.model.connector(states)
    assert torch.equal(ours, shuffled)
    one = torch.stack([connector_of(family, model)(unit) for unit in ours.unbind(1)], dim=1)
    assert torch.allclose(one, whole, atol=1e-5)


def test_units_of_a_map_that_is_no_square_hold_their_patches_row_by_row():
    states = torch.arange(24.0).view(1, 24, 1)  # 4 x 6 patches, numbered
    found = in_units(states, (1, 2, 3), 2)[0]
    assert found[0].tolist() == [0, 1, 6, 7] and found[2].tolist() == [4, 5, 10, 11]
    assert found[5].tolist() == [16, 17, 22, 23]


def test_attention_of_a_unit_is_the_sum_over_its_patches_and_its_key_the_mean():
    value, keys = torch.rand(2, 3, 36), torch.rand(2, 36, 5)  # 6 x 6 patches, units of 3 x 3
    summed, mean = folded("cls_attention", value, (1, 2, 2), 3), folded("keys", keys, (1, 2, 2), 3)
    for row in range(2):
        for column in range(2):
            patches = [6 * y + x for y in range(3 * row, 3 * row + 3) for x in range(3 * column, 3 * column + 3)]
            assert torch.allclose(summed[..., 2 * row + column], value[..., patches].sum(-1))
            assert torch.allclose(mean[:, 2 * row + column], keys[:, patches].mean(1))
    assert torch.allclose(summed.sum(-1), value.sum(-1), atol=1e-5)  # no attention is lost
    assert folded("received_attention", value[:, 0], (1, 2, 2), 3).shape == (2, 4)


@pytest.mark.parametrize("vision", [{}, {"use_qk_norm": True}], ids=str)
@torch.no_grad()
def test_signals_of_internvl_are_its_own_attention(vision):
    model = tiny.model(INTERNVL, **vision)
    model.set_attn_implementation("eager")
    tower, pixels = tower_of(INTERNVL, model), noise(INTERNVL)
    whole = model.model.vision_tower(pixels, output_attentions=True).attentions
    states, grid = walked(tower, pixels, GRID[INTERNVL]), GRID[INTERNVL]
    for layer in range(4):
        q, k = tower.queries_keys(layer, states[layer], 65, grid)
        cls, units = tower_signal(tower, "cls_attention", layer, q, k, None, grid)
        assert torch.allclose(cls[..., 0], whole[layer][:, :, 0, 0], atol=1e-6)
        wanted = folded("cls_attention", whole[layer][:, :, 0, 1:], grid, 2)
        assert units.shape == (2, 3, 16) and torch.allclose(units, wanted, atol=1e-6)
        assert torch.allclose(units.sum(-1) + cls[..., 0], torch.ones(2, 3), atol=1e-5)
        _, received = tower_signal(tower, "received_attention", layer, q, k, None, grid)
        wanted = folded("received_attention", whole[layer].mean((1, 2))[:, 1:], grid, 2)
        assert torch.allclose(received, wanted, atol=1e-6)
        assert tower_signal(tower, "keys", layer, None, k, None, grid)[1].shape == (2, 16, 8)
        first, all_keys = tower.queries_keys(layer, states[layer], 1, grid)
        assert torch.allclose(first, q[:, :, :1], atol=1e-5) and torch.equal(all_keys, k)
        assert tower.queries_keys(layer, states[layer], 0, grid)[0] is None


@pytest.mark.parametrize("family", [SMOLVLM, IDEFICS3])
@torch.no_grad()
def test_without_cls_the_attention_received_stands_for_it(family):
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    tower, pixels, grid = tower_of(family, model), noise(family), GRID[family]
    whole = model.model.vision_model(pixels, output_attentions=True).attentions
    states = walked(tower, pixels, grid)
    assert not tower.has_cls and tower.first == 0
    for layer in range(4):
        q, k = tower.queries_keys(layer, states[layer], states[layer].shape[1], grid)
        cls, units = tower_signal(tower, "cls_attention", layer, q, k, None, grid)
        wanted = folded("cls_attention", whole[layer].mean((1, 2)), grid, SIDE[family])
        assert cls.shape == (2, 1, 0) and torch.allclose(units[:, 0], wanted, atol=1e-6)
        assert torch.allclose(units.sum(-1), torch.ones(2, 1), atol=1e-5)


@pytest.mark.parametrize("family", [SMOLVLM, IDEFICS3])
@torch.no_grad()
def test_smaller_views_take_positions_at_the_same_fractions(family):
    model, side = tiny.model(family), SIDE[family]
    tower, grid = tower_of(family, model), (1, 2, 1)
    pixels = noise(family, height=2 * side * PATCH, width=side * PATCH)
    wanted = model.model.vision_model(pixels).last_hidden_state
    assert torch.allclose(tower.norm_out(walked(tower, pixels, grid)[-1]), wanted, atol=1e-5)
    table, whole = model.model.vision_model.embeddings.position_embedding.weight, VIEW[family] // PATCH
    place = (tower.embed(torch.zeros_like(pixels), grid) - tower.embed(torch.zeros_like(pixels), grid)[:, :1])[0]
    row, column = 1, side - 1  # the second row of 2 k, the last column of k
    bucket = int(row / (2 * side) * whole + 1e-6) * whole + int(column / side * whole + 1e-6)
    assert torch.allclose(place[row * side + column], table[bucket] - table[0], atol=1e-5)


@torch.no_grad()
def test_smaller_views_of_internvl_are_what_its_tower_makes_of_them():
    model = tiny.model(INTERNVL)
    tower, pixels = tower_of(INTERNVL, model), noise(INTERNVL, height=24, width=16)
    wanted = model.model.vision_tower(pixels).last_hidden_state
    assert torch.allclose(walked(tower, pixels, (1, 3, 2))[-1], wanted, atol=1e-5)


def test_a_layer_that_no_block_gives_is_refused():
    model = tiny.model(INTERNVL)
    for layer in (0, 5, -5):
        with pytest.raises(UnsupportedModel, match=f"vision_feature_layer {layer}: no block's output in a tower of 4"):
            InternVLTower(model.model.vision_tower, layer, 2)


def settings_of(family):
    if family == INTERNVL:
        return [{}, {"max_patches": 1}, {"max_patches": 6, "min_patches": 2}]
    edge = {"size": {"longest_edge": VIEW[family]}}
    return [{}, edge, {"do_image_splitting": False}, {"size": {"longest_edge": 3 * VIEW[family]}}]


@pytest.mark.parametrize("family", FAMILIES)
def test_views_are_the_processors_tiles_in_its_order(family):
    seen = set()
    for settings in settings_of(family):
        inputs, reference = inputs_of(family, **settings)
        for height, width in SIZES:
            rgb = tiny.picture(height, height, width)
            found = inputs.framed(rgb)
            assert all(view.pixels.dtype == np.uint8 and view.grid == GRID[family] for view in found.views)
            wanted = tiny.hf_inputs(reference, [[rgb]], ["left ?"])["pixel_values"].reshape(-1, 3, *[VIEW[family]] * 2)
            assert torch.equal(inputs.pixels(found.views), wanted.float())
            assert found.size == (height, width)
            seen.add(len(found.views))
    assert seen >= {1, 3, 5}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_prompts_are_the_processors_and_say_what_each_entry_shows(family, pictures):
    for settings in settings_of(family):
        inputs, reference = inputs_of(family, **settings)
        for number, question in enumerate(QUESTIONS):
            images = [tiny.picture(number + i, *SIZES[(number + i) % 7]) for i in range(pictures)]
            row = inputs.row(images, question, 0)
            wanted = tiny.hf_inputs(reference, [images], [question])
            assert row.ids.tolist() == wanted["input_ids"][0].tolist()
            shows = row.view >= 0
            assert ((row.ids == inputs.image_token_id) == shows).all()
            n, views = TOKENS[family], len(row.views)
            assert row.view[shows].tolist() == [v for v in range(views) for _ in range(n)]
            assert row.position[shows].tolist() == list(range(n)) * views
            assert (row.position[~shows] == -1).all() and row.place.tolist() == [[i] for i in range(len(row.ids))]
            assert row.shape.grids == (GRID[family],) * views and row.shape.n_visual == n * views
            assert row.shape.n_text == len(row.ids) - n * views and len(row.pictures) == pictures


def test_a_processor_in_parts_is_the_whole_one(tmp_path):
    whole = tiny.processor(SMOLVLM)
    whole.save_pretrained(tmp_path)
    tiny.config(SMOLVLM).save_pretrained(tmp_path)
    parts, talk = Parts.load(str(tmp_path)), [{"role": "user", "content": [{"type": "image"}]}]
    assert parts.image_processor.to_dict() == whole.image_processor.to_dict()
    assert type(parts.image_processor).__name__ == "SmolVLMImageProcessorPil"
    assert parts.chat_template == whole.chat_template
    assert parts.apply_chat_template(talk, add_generation_prompt=True) == "User:<image>\nAssistant:"
    assert parts.tokenizer("<image>left").input_ids == whole.tokenizer("<image>left").input_ids


def test_tiles_of_smolvlm_are_named_by_row_and_column():
    inputs, _ = inputs_of(SMOLVLM)
    row = inputs.row(tiny.picture(0, 40, 90), "left ?", 0)
    names = inputs.tokenizer.convert_ids_to_tokens(row.ids[row.view < 0].tolist())
    assert names[3:12] == [
        *("<fake_token_around_image>", "<row_1_col_1>", "<fake_token_around_image>", "<row_1_col_2>", "\n", "\n"),
        *("<fake_token_around_image>", "<global-img>", "<fake_token_around_image>"),
    ]
    assert len(row.views) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_laid_out_smaller_has_shorter_runs_and_all_its_words(family):
    inputs, _ = inputs_of(family)
    row = inputs.row([tiny.picture(0, 40, 90), tiny.picture(1, 20, 20)], QUESTIONS[1], 0)
    grids = [(1, 1 + v % 2, 2) for v in range(len(row.views))]
    small = inputs.relaid(row, grids)
    assert [view.grid for view in small.views] == grids and small.seed == row.seed
    assert small.ids[small.view < 0].tolist() == row.ids[row.view < 0].tolist()
    shows = small.view >= 0
    assert small.view[shows].tolist() == [v for v, g in enumerate(grids) for _ in range(g[1] * g[2])]
    assert small.position[shows].tolist() == [p for g in grids for p in range(g[1] * g[2])]
    assert (small.ids[shows] == inputs.image_token_id).all()
    assert small.place[:, 0].tolist() == list(range(len(small.ids)))
    unit = SIDE[family] * PATCH
    assert [v.pixels.shape for v in small.views] == [(g[1] * unit, g[2] * unit, 3) for g in grids]
    same = inputs.relaid(row, [view.grid for view in row.views])
    assert same.ids.tolist() == row.ids.tolist() and same.views[0].pixels is row.views[0].pixels


@pytest.mark.parametrize("family", FAMILIES)
def test_views_that_cannot_be_had_are_refused(family):
    inputs, _ = inputs_of(family)
    row = inputs.row(tiny.picture(0), "left ?", 0)
    large = (1, 5, 2)
    with pytest.raises(HostError, match=r"cannot be shown at \(1, 5, 2\): views only get smaller"):
        inputs.relaid(row, [large] * len(row.views))
    with pytest.raises(HostError, match=r"cannot be shown at \(1, 0, 2\)"):
        inputs.relaid(row, [(1, 0, 2)] * len(row.views))
    with pytest.raises(BadInput, match="question 0: contains the image token"):
        inputs.row(tiny.picture(0), f"left {MARKER[family]} ?", 0)


def test_views_that_the_shuffle_does_not_divide_are_refused():
    with pytest.raises(UnsupportedModel, match="views of 36 x 36 pixels: needs squares of patches of 4 whose number"):
        inputs_of(INTERNVL, size={"height": 36, "width": 36})
    with pytest.raises(UnsupportedModel, match="views of 32 x 16 pixels"):
        inputs_of(INTERNVL, size={"height": 32, "width": 16})
    with pytest.raises(UnsupportedModel, match="views of 32 x 32 pixels.* the pixel shuffle's 3 divides"):
        inputs_of(SMOLVLM, max_image_size={"longest_edge": 32})

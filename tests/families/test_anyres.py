"""Tiles, maps and prompts of AnyRes pictures, against what transformers makes of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_anyres as tiny
import torch
from tiny_anyres import NEXT, ONEVISION, TILE
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from foveate.models.errors import HostError, UnsupportedModel
from foveate.models.families.anyres import AnyResInputs
from foveate.models.families.layout import Layout, best_resolution
from foveate.models.inputs import NEWLINE

pytestmark = pytest.mark.fast

PUBLISHED = {
    NEXT: [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    ONEVISION: [[a * 384, b * 384] for a in range(1, 7) for b in range(1, 7)],
}
SIZES = [(336, 336), (100, 1000), (1000, 100), (77, 40), (500, 331), (1024, 768), (3000, 4000), (5, 4000), (1080, 1920)]


def random_sizes(number, seed=0):
    spread = np.random.default_rng(seed).uniform(np.log(4), np.log(4000), (number, 2))
    return [tuple(int(x) for x in pair) for pair in np.exp(spread)]


@pytest.mark.parametrize("family", [NEXT, ONEVISION])
def test_the_best_resolution_is_theirs(family):
    for size in SIZES + random_sizes(300):
        assert best_resolution(size, PUBLISHED[family]) == select_best_resolution(size, PUBLISHED[family])


def packed(family, size, side, pixels, pinpoints, most, views):
    """What their model packs of tokens that hold their own (view, position), newlines holding (-1, NEWLINE)."""
    vision = SimpleNamespace(image_size=pixels, patch_size=pixels // side)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    n = side * side
    numbers = torch.arange(views * n)
    features = torch.stack([numbers // n, numbers % n], 1).double().unflatten(0, (views, n))
    newline, sizes = torch.tensor([-1.0, NEWLINE]).double(), torch.tensor([size])
    if family == NEXT:
        out, _ = LlavaNextModel.pack_image_features(model, [features], sizes, "default", newline)
    else:
        out, _ = LlavaOnevisionModel.pack_image_features(model, [features], sizes, newline, f"anyres_max_{most}")
    return features, out[0]


@pytest.mark.parametrize("family", [NEXT, ONEVISION])
def test_entries_show_the_tokens_that_their_model_packs(family):
    side, pixels = (24, 336) if family == NEXT else (27, 384)
    most = None if family == NEXT else 9
    kinds = set()
    for size in SIZES + random_sizes(60):
        best = best_resolution(size, PUBLISHED[family])
        tiles = (best[0] // pixels, best[1] // pixels)
        layout = Layout(size, tiles, (1, side, side), most)
        features, theirs = packed(family, size, side, pixels, PUBLISHED[family], most, layout.n_views)
        ours = np.stack(layout.entries(), 1)
        counts = [int((ours[:, 0] == view).sum()) for view in range(layout.n_views)]
        assert [h * w for _, h, w in layout.shown()] == counts and layout.newlines == (ours[:, 1] == NEWLINE).sum()
        kinds.add(layout.is_shrunk)
        if not layout.is_shrunk:
            assert np.array_equal(ours, theirs.numpy())
            continue
        map_, newline = theirs[side**2 :], ours[side**2 :, 1] == NEWLINE
        assert ours.shape == tuple(theirs.shape) and np.array_equal(newline, (map_[:, 1] == NEWLINE).numpy())
        views, tokens = torch.from_numpy(ours[side**2 :, 0]), map_[~torch.from_numpy(newline)]
        of_tiles = [tokens[views[views >= 0] == tile] for tile in range(1, layout.n_views)]
        assert all(torch.equal(*pair) for pair in zip(layout.mixed(features[1:]), of_tiles, strict=True))
    assert kinds == ({False} if family == NEXT else {False, True})


def test_entries_of_a_shrunk_map_show_the_tokens_that_weigh_most_and_none_twice():
    layout = Layout((3000, 4000), (5, 6), (1, 27, 27), 9)
    view, position = (of[27 * 27 :] for of in layout.entries())
    shown = position >= 0
    identity = torch.zeros(30, 27 * 27, 1).double()
    entries = np.flatnonzero(shown)
    assert len(set(zip(view[shown], position[shown], strict=True))) == shown.sum() == layout.out[0] * layout.out[1]
    for number in (0, 5000, len(entries) - 1):
        identity[view[entries[number]] - 1, position[entries[number]]] = 1
        shares = layout.mixed(identity)
        identity[:] = 0
        tile = view[entries[number]]
        assert 0.25 <= float(shares[tile - 1].max()) <= 1
        assert int(shares[tile - 1].argmax()) == int((view[: entries[number]] == tile).sum())


def test_a_published_picture_has_its_published_count():
    layout = Layout((672, 672), (2, 2), (1, 24, 24))  # LLaVA-NeXT: 2880 tokens, beside its newlines
    assert sum(t * h * w for t, h, w in layout.shown()) == 2880 and layout.newlines == 48


def test_a_picture_by_itself_is_followed_by_one_newline():
    layout = Layout((5, 9), (0, 0), (1, 2, 2))
    view, position = layout.entries()
    assert layout.shown() == ((1, 2, 2),) and layout.newlines == 1 and not layout.is_shrunk
    assert view.tolist() == [0, 0, 0, 0, -1] and position.tolist() == [0, 1, 2, 3, NEWLINE]


@pytest.fixture(scope="module", params=[NEXT, ONEVISION])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def inputs(family):
    more = {} if family == NEXT else {"most_tiles": tiny.MOST_TILES, "nested": True}
    return AnyResInputs(
        tiny.processor(family), tiny.IMAGE, TILE[family], tiny.PATCH[family], tiny.PINPOINTS[family], **more
    )


SHAPES = [(32, 32), (20, 90), (90, 20), (70, 61), (150, 40), (300, 290), (7, 400), (23, 44)]


def theirs(inputs, nested, pictures, question):
    """What the HF processor makes of one row."""
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
    text = inputs.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return inputs.processor(images=[pictures] if nested else pictures, text=text, return_tensors="pt")


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_and_pixels_are_those_of_the_hf_processor(family, inputs, shape):
    picture = tiny.picture(1, *shape)
    row, made = (
        inputs.row(picture, "what is this ?", 0),
        theirs(inputs, family == ONEVISION, [picture], "what is this ?"),
    )
    assert row.ids.tolist() == made["input_ids"][0].tolist()
    assert torch.equal(inputs.pixels(row.views), made["pixel_values"][0])
    assert all(view.pixels.dtype == np.uint8 and view.grid == inputs.grid for view in row.views)


@pytest.mark.parametrize("shapes", [[(32, 32), (20, 90)], [(90, 20), (70, 61), (300, 290)]])
def test_rows_of_several_pictures_are_those_of_the_hf_processor(family, inputs, shapes):
    pictures = [tiny.picture(i, *shape) for i, shape in enumerate(shapes)]
    row, made = inputs.row(pictures, "left ?", 0), theirs(inputs, family == ONEVISION, pictures, "left ?")
    assert row.ids.tolist() == made["input_ids"][0].tolist()
    pixels = [p[: len(f.views)] for p, f in zip(made["pixel_values"], row.pictures, strict=True)]
    assert torch.equal(inputs.pixels(row.views), torch.cat(pixels))
    if family == ONEVISION:  # published so: several pictures are shown whole, each with one newline behind
        assert [len(f.views) for f in row.pictures] == [1] * len(shapes) and row.shape.newlines == len(shapes)


def test_smaller_views_are_laid_out_as_a_model_with_smaller_tiles_would(family, inputs):
    for shape in SHAPES:
        row = inputs.row(tiny.picture(1, *shape), "left ?", 0)
        small = inputs.relaid(row, [(1, 3, 3)] * len(row.views))
        scaled = [[24 * n for n in inputs.tiles(shape)]]  # the resolution that was chosen, at 24 pixels a tile
        layout = small.pictures[0].layout
        _, packed_ = packed(family, shape, 3, 24, scaled, tiny.MOST_TILES, len(row.views))
        at = np.flatnonzero(small.ids == tiny.IMAGE)
        assert len(at) == len(packed_) and small.seed == row.seed
        assert inputs.pixels(small.views).shape == (len(row.views), 3, 3 * inputs.patch, 3 * inputs.patch)
        if not layout.is_shrunk:
            assert np.array_equal(np.stack([small.view[at], small.position[at]], 1), packed_.numpy())


def test_tiles_of_different_grids_and_foreign_resolutions_are_refused(family, inputs):
    row = inputs.row(tiny.picture(1, 32, 32), "left ?", 0)
    with pytest.raises(HostError, match="one grid"):
        inputs.relaid(row, [(1, 2, 2)] + [inputs.grid] * (len(row.views) - 1))
    with pytest.raises(UnsupportedModel, match="the model expects"):
        AnyResInputs(tiny.processor(family), tiny.IMAGE, TILE[family], tiny.PATCH[family], [[64, 64]])
    with pytest.raises(UnsupportedModel, match="no whole tiles"):
        AnyResInputs(tiny.processor(family), tiny.IMAGE, 20, 4, tiny.PINPOINTS[family])

"""Pictures and prompts are framed and laid out as HF's own processor and model do it."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from foveate.models.errors import BadInput
from foveate.models.families.qwen import QwenInputs, framed_size
from foveate.models.families.qwen_tower import patches_of
from foveate.models.inputs import TEXT

pytestmark = pytest.mark.fast
SIZES = [(40, 48), (41, 90), (9, 200), (300, 31), (5, 5), (64, 64), (12, 20)]


@pytest.fixture(scope="module")
def inputs(tiny, kind):
    return QwenInputs(tiny.original_processor(kind), tiny.IMAGE, tiny.VIDEO, tiny.FACTOR)


def hf(processor, images, question):
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
    talk = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    return processor(images=[Image.fromarray(i) for i in images], text=[text], return_tensors="pt")


def test_sizes_are_those_of_the_processor():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(5, 900, (400, 2)).tolist():
        for least, most in ((4 * 64, 64 * 64), (56 * 56, 28 * 28 * 1280)):
            for unit in (8, 28):
                assert framed_size(height, width, unit, least, most) == smart_resize(height, width, unit, least, most)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_of_a_framed_picture_are_the_processors(inputs, tiny, size):
    image = tiny.picture(1, *size)
    wanted = inputs.processor.image_processor([Image.fromarray(image)], return_tensors="pt")
    picture = inputs.framed(image)
    (view,) = picture.views
    assert view.pixels.dtype == np.uint8
    assert view.pixels.shape[:2] == (8 * view.grid[1], 8 * view.grid[2])
    assert wanted["image_grid_thw"].tolist() == [[1, 2 * view.grid[1], 2 * view.grid[2]]]
    found = patches_of(inputs.pixels([view]), tiny.PATCH, 2, 2)[0]
    assert torch.allclose(found, wanted["pixel_values"], atol=1e-6)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:3], [SIZES[3], SIZES[0], SIZES[4]]], ids=str)
def test_a_prompt_is_laid_out_as_the_model_reads_it(inputs, tiny, kind, original, sizes):
    images = [tiny.picture(s, *size) for s, size in enumerate(sizes)]
    row = inputs.row(images, tiny.QUESTIONS[1], 0)
    wanted = hf(inputs.processor, images, tiny.QUESTIONS[1])
    assert row.ids.tolist() == wanted["input_ids"][0].tolist()
    shown = wanted["mm_token_type_ids"][0].numpy() == 1
    assert ((row.position >= 0) == shown).all()
    assert (row.position[~shown] == TEXT).all()
    assert ((row.view >= 0) == shown).all()
    for number, view in enumerate(row.views):
        assert row.position[row.view == number].tolist() == list(range(view.n))
    thw = wanted["image_grid_thw"]
    assert [(1, g[1] // 2, g[2] // 2) for g in thw.tolist()] == [v.grid for v in row.views]
    places, _ = original(kind).model.get_rope_index(wanted["input_ids"], wanted["mm_token_type_ids"], thw)
    assert row.place.T.tolist() == places[:, 0].tolist()
    assert row.shape.n_text == int((~shown).sum())


def test_places_of_one_picture_between_words(inputs, tiny):
    row = inputs.row(tiny.picture(0, 24, 16), "left ?", 0)  # 3 x 2 tokens behind three entries, seven words after
    assert row.place[:3].tolist() == [[0] * 3, [1] * 3, [2] * 3]
    assert row.place[3:9].tolist() == [[3, 3 + h, 3 + w] for h in range(3) for w in range(2)]
    assert row.place[9:].tolist() == [[6 + i] * 3 for i in range(len(row.ids) - 9)]


def test_a_row_can_be_laid_out_anew_with_a_smaller_picture(inputs, tiny):
    row = inputs.row([tiny.picture(0, 40, 48), tiny.picture(1, 16, 16)], "left ?", 0)
    smaller = inputs.relaid(row, [(1, 3, 4), (1, 2, 2)])
    assert [v.grid for v in smaller.views] == [(1, 3, 4), (1, 2, 2)]
    assert smaller.views[0].pixels.shape == (24, 32, 3)
    assert smaller.views[1].pixels is row.views[1].pixels
    assert smaller.seed == row.seed
    assert len(smaller.ids) == len(row.ids) - 30 + 12
    assert smaller.place[3:15].tolist() == [[3, 3 + h, 3 + w] for h in range(3) for w in range(4)]
    assert smaller.place[15].tolist() == [7] * 3


def test_what_the_model_does_not_take_is_refused_in_one_line(inputs, tiny):
    with pytest.raises(BadInput, match="a picture of 2 x 500: its sides differ by more than 200 times"):
        inputs.row(np.zeros((2, 500, 3), np.uint8), "left ?", 0)
    with pytest.raises(BadInput, match=r"question 3: contains the video token '<\|video_pad\|>'"):
        inputs.row(tiny.picture(0), "what <|video_pad|> ?", 3)
    with pytest.raises(BadInput, match=r"question 2: contains the image token '<\|image_pad\|>'"):
        inputs.row(tiny.picture(0), "<|image_pad|> ?", 2)
    with pytest.raises(BadInput, match="question 1: needs a string, got int"):
        inputs.row(tiny.picture(0), 7, 1)


def test_pictures_that_the_processor_leaves_alone_must_fit(tiny, kind):
    processor = tiny.original_processor(kind)
    processor.image_processor.do_resize = False
    inputs = QwenInputs(processor, tiny.IMAGE, tiny.VIDEO, tiny.FACTOR)
    image = tiny.picture(0, 8, 24)
    assert inputs.framed(image).views[0].pixels.tolist() == image.tolist()
    with pytest.raises(BadInput, match="a picture of 8 x 23: this model's are multiples of 8"):
        inputs.framed(image[:, :23])

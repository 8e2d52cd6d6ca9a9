"""The gate's `generate` on every family: what an HF processor makes is read back, decided and answered."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny_anyres
import tiny_qwen
import tiny_shuffle
import torch
from PIL import Image
from tiny_words import QUESTIONS
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.models import load_host
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.serving.gate import Gate
from foveate.serving.requests import Unsupported, from_tensors, tensors

pytestmark = pytest.mark.fast

LLAVA, NEXT, ONEVISION, QWEN2, QWEN3 = "llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl"
FAMILIES = (LLAVA, NEXT, ONEVISION, QWEN2, QWEN3, *tiny_shuffle.FAMILIES)
SIZES = ((40, 48), (20, 60), (64, 30), (33, 33))
ZIP = Plan.of(outside=("visionzip", 0.5))


def neighbour(name: str) -> ModuleType:
    """The helpers beside another folder's tests."""
    spec = importlib.util.spec_from_file_location(f"{name}_helpers", Path(__file__).parents[1] / name / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_models, serving = neighbour("models"), neighbour("serving")


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Family -> (host, HF's model, its processor)."""
    torch.set_num_threads(1)

    @cache
    def get(family: str):
        folder = tmp_path_factory.mktemp(family)
        if family == LLAVA:
            tiny_models.build(folder)
            processor = AutoProcessor.from_pretrained(folder)
        elif family in (NEXT, ONEVISION):
            tiny_anyres.build(folder, family)
            processor = tiny_anyres.processor(family)
        elif family in (QWEN2, QWEN3):
            tiny_qwen.build(folder, family)
            processor = tiny_qwen.original_processor(family)
        else:
            tiny_shuffle.build(folder, family)
            processor = tiny_shuffle.processor(family)
        return load_host(folder), AutoModelForImageTextToText.from_pretrained(folder), processor

    return get


def rows(counts: tuple[int, ...]) -> tuple[list[list[np.ndarray]], list[str]]:
    """Rows of so many pictures each, all different, and their questions."""
    seeds = iter(range(100))
    pictures = [[tiny_shuffle.picture(s, *SIZES[s % 4]) for s in (next(seeds) for _ in range(n))] for n in counts]
    return pictures, [QUESTIONS[i % len(QUESTIONS)] for i in range(len(counts))]


def processed(family: str, processor, pictures, questions) -> dict[str, torch.Tensor]:
    """What the family's processor makes of rows, padded on the left."""
    texts = []
    for each, question in zip(pictures, questions, strict=True):
        content = [{"type": "image"}] * len(each) + [{"type": "text", "text": question}]
        talk = [{"role": "user", "content": content}]
        form = {"chat_template": processor.chat_template, "add_generation_prompt": True, "tokenize": False}
        texts.append(processor.tokenizer.apply_chat_template(talk, **form))
    images = [[Image.fromarray(picture) for picture in each] for each in pictures]
    if family not in (ONEVISION, tiny_shuffle.SMOLVLM, tiny_shuffle.IDEFICS3):
        images = [picture for each in images for picture in each]
    return dict(processor(images=images, text=texts, return_tensors="pt", padding=True))


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1, 1), (2,), (1, 2, 1)], ids=["one", "batch", "two", "mixed"])
def test_without_compression_it_is_the_models_own_generate(opened, family, counts):
    host, model, processor = opened(family)
    gate, made = Gate(host, None, serving.artefact(host, UNCOMPRESSED)), processed(family, processor, *rows(counts))
    got = gate.generate(**made, max_new_tokens=7)
    assert [record.why for record in gate.last] == [""] * len(counts)
    assert gate.counters == {"policy": len(counts), "rows": len(counts)}
    assert torch.equal(got, model.generate(**made, max_new_tokens=7, do_sample=False))
    assert got.shape[1] > made["input_ids"].shape[1]


def test_a_decided_plan_is_the_hosts_own_and_pictures_say_the_same_as_tensors(opened, family):
    host, _, processor = opened(family)
    pictures, questions = rows((1, 2, 1))
    made = processed(family, processor, pictures, questions)
    p = host.open(pictures, questions).run(ZIP)
    p.decode(max_new_tokens=5)
    gate = Gate(host, None, serving.artefact(host, ZIP))
    got = gate.generate(**made, max_new_tokens=5)
    assert [record.plan for record in gate.last] == [ZIP] * 3
    for ids, own in zip(got[:, made["input_ids"].shape[1] :].tolist(), p.generated, strict=True):
        assert ids[: len(own)] == own
    assert torch.equal(gate.generate(images=pictures, questions=questions, max_new_tokens=5), got)


def test_padding_on_the_right_is_read_by_the_mask(opened, family):
    host, _, processor = opened(family)
    gate, made = Gate(host, None, serving.artefact(host, UNCOMPRESSED)), processed(family, processor, *rows((1, 2, 1)))
    assert not made["attention_mask"].all()
    order = made["attention_mask"].argsort(dim=1, descending=True, stable=True)
    along = {name for name, value in made.items() if value.shape == order.shape}
    moved = {name: value.gather(1, order) if name in along else value for name, value in made.items()}
    left, right = gate.generate(**made, max_new_tokens=5), gate.generate(**moved, max_new_tokens=5)
    assert torch.equal(left[:, order.shape[1] :], right[:, order.shape[1] :])
    assert gate.counters["unsupported"] == 0


def test_rows_come_back_as_they_went_in(opened, family):
    host, _, processor = opened(family)
    pictures, questions = rows((1, 2, 1))
    request = from_tensors(host, processed(family, processor, pictures, questions) | {"max_new_tokens": 3})
    for got, own in zip(request.rows, host.inputs.rows(pictures, questions), strict=True):
        assert got.ids.tolist() == own.ids.tolist() and got.question == own.question.strip()
        assert np.array_equal(got.view, own.view) and np.array_equal(got.position, own.position)
        assert np.array_equal(got.place, own.place) and got.shape == own.shape
        for mine, theirs in zip(got.views, own.views, strict=True):
            assert np.array_equal(mine.pixels, theirs.pixels)


def test_tensors_made_from_rows_are_the_processors(opened, family):
    host, _, processor = opened(family)
    pictures, questions = rows((1, 2, 1))
    wanted = processed(family, processor, pictures, questions)
    got = tensors(host, host.inputs.rows(pictures, questions))
    assert set(got) == set(wanted)
    for name, value in got.items():
        assert torch.allclose(value.double(), torch.as_tensor(wanted[name]).double(), atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_in_half_precision_are_read_back_exactly(opened, family, dtype):
    host, _, processor = opened(family)
    made = processed(family, processor, *rows((1,)))
    wide, narrow = (from_tensors(host, made | {"pixel_values": made["pixel_values"].to(d)}) for d in (None, dtype))
    for a, b in zip(wide.rows[0].views, narrow.rows[0].views, strict=True):
        assert torch.equal(host.inputs.pixels([a]).to(dtype), host.inputs.pixels([b]).to(dtype))


SPOILT = {
    "no pixels": (FAMILIES, lambda made: {"pixel_values": None}, "pixel_values: missing"),
    "no picture": (FAMILIES, lambda made: {"pixel_values": torch.randn_like(made["pixel_values"])}, "8-bit|frames"),
    "an image token more": (
        FAMILIES,
        lambda made: {
            name: torch.cat([made[name][:, :1], _visual(made, name), made[name][:, 1:]], 1) for name in _long(made)
        },
        "row 0|mm_token|pixel_values",
    ),
    "no sizes": ((NEXT, ONEVISION), lambda made: {"image_sizes": None}, "image_sizes: missing"),
    "another size": ((NEXT,), lambda made: {"image_sizes": torch.tensor([[20, 200]])}, "tiles|image tokens"),
    "another grid": ((QWEN2, QWEN3), lambda made: {"image_grid_thw": made["image_grid_thw"] + 2}, "image_grid_thw"),
    "no kinds": ((QWEN2, QWEN3), lambda made: {"mm_token_type_ids": None}, "mm_token_type_ids: missing"),
    "masked pixels": (
        (tiny_shuffle.SMOLVLM, tiny_shuffle.IDEFICS3),
        lambda made: {"pixel_attention_mask": made["pixel_attention_mask"] * 0},
        "pixel_attention_mask",
    ),
    "twice the views": (tiny_shuffle.FAMILIES, lambda made: {"pixel_values": _twice(made["pixel_values"])}, "views"),
}


def _long(made):
    return [name for name, value in made.items() if value.shape == made["input_ids"].shape]


def _visual(made, name):
    """A tensor's value at the first image token."""
    ids = made["input_ids"][0]
    return made[name][:, ids.mode().indices][:, None]  # the most frequent id of these prompts


def _twice(values):
    return torch.cat([values, values], dim=values.ndim - 4)


@pytest.mark.parametrize(("family", "case"), [(f, case) for case, (families, *_) in SPOILT.items() for f in families])
def test_what_cannot_be_mapped_is_refused_in_one_line_before_anything_runs(opened, family, case, monkeypatch):
    _, spoil, words = SPOILT[case]
    host, _, processor = opened(family)
    made = processed(family, processor, *rows((1,)))
    monkeypatch.setattr(host.model, "forward", None)
    with pytest.raises(Unsupported, match=words) as refusal:
        from_tensors(host, made | spoil(made) | {"max_new_tokens": 3})
    assert "\n" not in str(refusal.value)


def test_what_is_refused_is_the_models_to_answer_and_the_record_says_why(opened):
    host, model, processor = opened(QWEN2)
    gate, made = Gate(host, None, serving.artefact(host, ZIP)), processed(QWEN2, processor, *rows((1,)))
    del made["mm_token_type_ids"]
    got = gate.generate(**made, max_new_tokens=4)
    assert torch.equal(got, model.generate(**made, max_new_tokens=4, do_sample=False))
    assert gate.last[0].reason == "unsupported" and gate.last[0].why.startswith("mm_token_type_ids: missing")


def test_a_fallen_row_is_answered_by_the_models_own_generate(opened, family):
    host, model, processor = opened(family)
    pictures, questions = rows((1, 2))
    gate, made = (
        Gate(host, None, serving.artefact(host, ZIP), max_flops=10.0),
        processed(family, processor, pictures, questions),
    )
    request = from_tensors(host, made | {"max_new_tokens": 5})
    wanted = model.generate(**made, max_new_tokens=5, do_sample=False)[:, made["input_ids"].shape[1] :].tolist()
    for i, own in enumerate(wanted):
        (answer,), _ = gate._uncompressed(request, i, "compressor")
        assert own[: len(answer)] == answer


def test_kept_positions_are_those_of_each_view(opened, family):
    host, *_ = opened(family)
    pictures, questions = rows((2,))
    gate = Gate(host, None, serving.artefact(host, ZIP))
    gate.answer(pictures, questions, 2)
    (record,), (row,) = gate.last, host.inputs.rows(pictures, questions)
    p = host.open(pictures, questions).run(ZIP)
    states = p.of_row("projector", 0)
    assert [grid for grid, _ in record.kept] == list(row.shape.shown or row.shape.grids)
    wanted = [sorted(position for position in state.position.tolist() if position >= 0) for state in states]
    assert [list(kept) for _, kept in record.kept] == wanted and any(wanted)
    plain = gate._uncompressed(from_tensors(host, tensors(host, [row]) | {"max_new_tokens": 2}), 0, "compressor")[1]
    assert [grid for grid, _ in plain.kept] == [grid for grid, _ in record.kept]
    assert [len(kept) for _, kept in plain.kept] == [int((entries >= 0).sum()) for entries in row.entries]


@pytest.mark.parametrize("size", [(60, 60), (30, 100), (90, 40)])
def test_boxes_say_where_views_lie(opened, family, size):
    """On a picture whose red grows to the right and whose green grows downwards, colours tell the place."""
    host, *_ = opened(family)
    (height, width), ramp = size, lambda n: np.linspace(20, 235, n)
    red, green = np.broadcast_to(ramp(width), size), np.broadcast_to(ramp(height)[:, None], size)
    image = np.stack([red, green, np.full(size, 128)], axis=-1).round().astype(np.uint8)
    picture = host.inputs.framed(image)
    for view, (left, top, right, bottom) in zip(picture.views, host.inputs.boxes(picture), strict=True):
        h, w = view.pixels.shape[:2]
        for y, x in ((h // 4, w // 4), (h // 2, w // 2), (3 * h // 4, 3 * w // 4)):
            across, down = left + (right - left) * (x + 0.5) / w, top + (bottom - top) * (y + 0.5) / h
            if not (0.1 < across < 0.9 and 0.1 < down < 0.9):
                continue  # padding, or beside it
            said = (view.pixels[y, x, :2] - 20.0) / 215
            assert abs(said[0] - across) < 0.05 and abs(said[1] - down) < 0.05

"""Videos: with nothing compressed a pass is the untouched model, and frames keep their times when it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_all
from transformers.video_utils import VideoMetadata

from foveate.compressors.registry import COMPRESSORS, make
from foveate.models.errors import BadInput, HostError
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast
FPS = 4.0


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


@pytest.fixture(scope="module")
def processor(kind, tiny):
    """HF's own, with the numbers of a video processor in place of one, which would need torchvision."""
    made = tiny.original_processor(kind)
    made.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    return made


def clip(tiny, first, t, height=24, width=32):
    return Clip.of(np.stack([tiny.picture(first + i, height, width) for i in range(t)]), FPS)


def hf_inputs(kind, processor, row, shown, tiny, question):
    """What HF's processor makes of a row: its text and packing, our resized frames."""
    how = processor.image_processor
    content = [{"type": "video" if isinstance(one, Clip) else "image"} for one in shown]
    talk = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    stills = [one for one in shown if not isinstance(one, Clip)]
    images = how([Image.fromarray(one) for one in stills], return_tensors="pt") if stills else {}
    patches, grids, spans, replaced = [], [], [], {"images": [], "videos": []}
    for number, _ in enumerate(stills):
        replaced["images"].append(processor.replace_image_token(images, number))
    films = [one for one in shown if isinstance(one, Clip)]
    for one, view in zip(films, [v for v in row.views if v.pixels.ndim == 4], strict=True):
        pixels = torch.from_numpy(view.pixels[: len(one.frames)]).permute(0, 3, 1, 2).double() / 255
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (how.image_mean, how.image_std))
        made, *grid = Qwen3VLVideoProcessor.patchify(None, ((pixels - mean) / std).float()[None], tiny.PATCH, 2, 2)
        patches.append(made[0])
        grids.append(grid)
        about = VideoMetadata(len(one.frames), FPS, frames_indices=list(range(len(one.frames))))
        spans.append(2 / about.sampled_fps)
        given = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [about]}
        replaced["videos"].append(processor.replace_video_token(given, 0))
    (text,), _ = processor.get_text_with_replacements([text], replaced["images"], replaced["videos"])
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    kinds = (ids == tiny.IMAGE).int() + 2 * (ids == tiny.VIDEO).int()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **images}
    if films:
        inputs |= {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}
        inputs |= {"second_per_grid_ts": torch.tensor(spans, dtype=torch.float64)} if kind == "qwen2_5_vl" else {}
    return inputs


def rows_of(tiny):
    return [
        [clip(tiny, 0, 4)],
        [clip(tiny, 5, 5, 40, 24)],  # an odd number: the last frame stands twice
        [tiny.picture(11), clip(tiny, 12, 2)],
        [clip(tiny, 20, 3), tiny.picture(24, 16, 24), clip(tiny, 25, 4, 16, 16)],
        [tiny.picture(30)],
    ]


def test_rows_with_videos_generate_what_the_model_generates(host, kind, original, processor, tiny):
    shown = rows_of(tiny)
    questions = [tiny.QUESTIONS[i % 4] for i in range(len(shown))]
    p, wanted, logits = host.open(shown, questions), [], []
    for row, each, question in zip(p.rows, shown, questions, strict=True):
        inputs = hf_inputs(kind, processor, row, each, tiny, question)
        assert row.ids.tolist() == inputs["input_ids"][0].tolist()
        more = {k: v for k, v in inputs.items() if k.endswith(("thw", "ts"))}
        places, _ = original(kind).model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **more)
        assert row.place.T.tolist() == places[:, 0].tolist()
        for name, value in host.inputs.tensors(host.inputs).of([row], torch.from_numpy(row.ids)[None]).items():
            assert torch.allclose(value.double(), inputs[name].double(), atol=1e-6), name
        with torch.no_grad():
            out = original(kind).generate(**inputs, do_sample=False, max_new_tokens=7)
            logits.append(original(kind)(**inputs).logits[0, -1])
        wanted.append(out[0, len(row.ids) :].tolist())
    p.decode(max_new_tokens=7)
    assert p.generated == [ids[: ids.index(2) + 1] if 2 in ids else ids for ids in wanted]
    assert torch.allclose(p.logits, torch.stack(logits), atol=1e-4) and len({tuple(ids) for ids in wanted}) > 1
    assert [len(units) for units in p.units] == [2, 3, 1, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("size", [(3, 24, 32), (5, 200, 300), (2, 6, 40), (7, 64, 16)], ids=str)
def test_frames_are_shown_at_the_size_of_hfs_processor(host, kind, size):
    least, most = host.inputs.bounds
    t, height, width = size
    if kind == "qwen2_5_vl":
        wanted = smart_resize(height, width, 8, least, most)
    else:
        wanted = smart_resize_all(t, height, width, 2, 8, least, most)
    assert host.inputs.frame_size(*size) == wanted


@pytest.mark.parametrize(
    "plan",
    [
        UNCOMPRESSED,
        Plan.of(input=("downsample", 0.5)),
        Plan.of(input=("frames", 0.67), outside=("stride", 0.5)),
        Plan.of(outside=("visionzip", 0.25)),
        Plan.of(projector=("meteor", 0.5), prefill=("fastv", 0.5)),
        Plan.of(outside=("stride", 0.5), decode=("look_m", 0.5)),
    ],
    ids=lambda plan: plan.label(),
)
def test_a_forecast_is_the_ledger_and_tokens_keep_their_times(host, tiny, plan):
    p = host.open([[clip(tiny, 0, 6)], [tiny.picture(9)]], tiny.QUESTIONS[:2])
    if plan["projector"].method == "meteor" or plan["input"].method == "frames":
        with pytest.raises(HostError, match="(meteor|frames): is for videos"):
            host.forecast(plan, p.shapes[1])
        p = p.fork([0])
    p.run(plan)
    p.decode(max_new_tokens=3)
    for row in range(len(p)):
        assert p.ledger[row] == host.forecast(plan, p.shapes[row], new_tokens=len(p.generated[row]))
    stream, row = p.opened.stream, p.laid[0]
    kept, entry = stream.visual[0], stream.entry[0]
    if ("projector", plan["projector"].method) not in COMPRESSORS or not kept.any():
        return
    assert stream.place[0][kept].tolist() == row.place[entry[kept].numpy()].tolist()


@pytest.mark.parametrize(("t", "which"), [(6, [0, 2, 3, 5]), (5, [0, 1, 3, 4])])
def test_fewer_frames_are_the_video_of_those_frames(host, tiny, t, which):
    whole = clip(tiny, 0, t)
    p = host.open([whole], tiny.QUESTIONS[:1])
    p.resize(make("input", "frames"), 0.67)
    wanted = host.inputs.row(whole.at(np.array(which)), tiny.QUESTIONS[0], 0)
    got = p.laid[0]
    assert got.views[0].grid[0] == 2 and got.pictures[0].film == wanted.pictures[0].film
    if got.shape == wanted.shape:  # Qwen3's frames share their pixels: fewer of them are shown larger
        assert np.array_equal(got.views[0].pixels, wanted.views[0].pixels) and np.array_equal(got.ids, wanted.ids)
    assert host.reshaped(p.rows[0].shape, [got.views[0].grid]).n_text == got.shape.n_text


def test_a_question_that_holds_the_video_token_is_refused(host, tiny):
    with pytest.raises(BadInput, match="question 0: contains the video token"):
        host.open([clip(tiny, 0, 2)], ["<|video_pad|> what ?"])

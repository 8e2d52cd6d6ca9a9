"""What can be loaded, what is refused in one line, and how a model is known again."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from foveate.models import load_host
from foveate.models.errors import BadInput, UnsupportedModel


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of the usual model's folder, to be spoilt."""
    return shutil.copytree(folders(text_tower=True), tmp_path / "model")


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def test_a_host_declares_what_it_can_give(hosts):
    host = hosts(text_tower=True)
    assert host.signals == {
        *("keys", "features", "block_states", "cls_states", "cls_attention", "received_attention", "attention_map"),
        *("last_query", "unrotated_query", "mean_query", "visual_keys", "wide_keys", "hidden_states", "post_norm"),
        *("question", "text_similarity", "phrase_similarity"),
        *("frame_vectors", "frame_similarity", "accumulated_attention", "answer_attention"),
        *("recent_attention", "survivors", "frame_relevance", "text_attention", "text_peak", "cls_rank"),
        *("glimpse_query", "tower_levels", "spoken"),
    }
    assert "text_similarity" not in hosts(tower="siglip").signals
    assert (host.grid, host.n_visual, host.encoder_depth, host.decoder_depth) == ((1, 4, 4), 16, 3, 4)
    assert hosts(feature_layer=-1).encoder_depth == 4
    assert (host.shape.decoder.kv_heads, host.shape.decoder.head_dim, host.shape.projector) == (2, 8, (24, 32, 32))


@pytest.mark.parametrize(
    ("stage", "name", "reason"),
    [
        ("prefill", "none", None),
        ("input", "blind", None),
        ("prefill", "fastv", None),
        ("encoder", "tome", None),
        ("decode", "look_m", None),
        ("prefill", "blind", "no method 'blind' at stage 'prefill'"),
        ("outside", "vision_zip", "no method 'vision_zip' at stage 'outside'; near: visionzip"),
    ],
)
def test_supports_gives_a_reason_or_none(host, stage, name, reason):
    assert host.supports(stage, name) == reason


def test_the_fingerprint_survives_another_dtype_and_a_copy_but_not_another_weight(folders, copy):
    from safetensors.torch import load_file, save_file

    first = load_host(folders(text_tower=True)).fingerprint
    assert load_host(copy).fingerprint == first
    assert load_host(copy, dtype="bfloat16").fingerprint == first
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.2.self_attn.q_proj.weight") and "language" in n)
    weights[name][0, 0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    changed = load_host(copy).fingerprint
    assert changed != first
    edit(copy, vision_feature_layer=-1)
    assert load_host(copy).fingerprint not in (first, changed)


def test_bfloat16_runs_and_scores(copy, tiny):
    host = load_host(copy, dtype="bfloat16")
    p = host.open([tiny.picture(0)], ["left ?"])
    assert p.score([["red"]])[0].logprob[0] < 0
    assert p.logits.dtype == torch.float32
    assert host.shape.bytes_per_value == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2' has no host here; known: llava"),
        ({"model_type": "no-such-thing"}, "no usable config"),
        ({"vision_feature_layer": [-2, -1]}, "needs one layer, not a list"),
        ({"vision_feature_layer": -5}, "no block's output in a tower of 4"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_opened_is_refused_in_one_line(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        load_host(copy)
    assert "\n" not in str(caught.value)


def test_other_towers_and_decoders_are_named(copy):
    config = json.loads((copy / "config.json").read_text())
    edit(copy, text_config={**config["text_config"], "model_type": "gemma"})
    with pytest.raises(UnsupportedModel, match="language model 'gemma'; known: llama, qwen2, mistral"):
        load_host(copy)


def test_missing_weights_are_named(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights.pop(next(n for n in weights if n.endswith("multi_modal_projector.linear_2.weight")))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match="1 weights are missing, first '.*linear_2.weight'"):
        load_host(copy)


def test_no_weights_at_all_damaged_weights_and_empty_folders_are_refused(copy, tmp_path):
    (copy / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_host(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_host(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedModel, match="no config.json there"):
        load_host(tmp_path / "empty")
    with pytest.raises(UnsupportedModel, match="no such folder"):
        load_host(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModel, match="dtype 'int8'"):
        load_host(copy, dtype="int8")


def test_an_incomplete_text_tower_is_refused(copy):
    (copy / "text_tower" / "visual_projection.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="visual_projection.safetensors is missing"):
        load_host(copy)


def test_a_tower_without_cls_cannot_drop_its_first_row(tiny, tmp_path):
    with pytest.raises(UnsupportedModel, match='feature selection "default" drops a patch'):
        load_host(tiny.build(tmp_path, tower="siglip", strategy="default"))


def test_pictures_come_as_arrays_pil_images_and_files(host, tiny, tmp_path):
    array = tiny.picture(0)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    p = host.open([array, image, tmp_path / "a.png", str(tmp_path / "a.png")], ["left ?"] * 4)
    assert len({row.seed for row in p.rows}) == 1
    assert all(np.array_equal(row.views[0].pixels, array) for row in p.rows)
    grey = host.open([image.convert("L")], ["left ?"])
    assert grey.rows[0].views[0].pixels.shape == (32, 32, 3)


def test_seeds_depend_on_pixels_and_question(host, tiny):
    p = host.open([tiny.picture(0), tiny.picture(1), tiny.picture(0)], ["left ?", "left ?", "red ?"])
    seeds = [row.seed for row in p.rows]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [
        row.seed for row in host.open([r.views[0].pixels for r in p.rows], ["left ?", "left ?", "red ?"]).rows
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"image 1: needs a uint8 array \(H, W, 3\), got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "image 1: needs a uint8 array"),
        (np.zeros((0, 4, 3), np.uint8), "image 1: needs a uint8 array"),
        (b"no picture", "row 1: image .*broken.png': not a picture of a known format"),
    ],
)
def test_a_bad_picture_is_named_by_its_row(host, tiny, tmp_path, bad, message):
    if isinstance(bad, bytes):
        (tmp_path / "broken.png").write_bytes(bad)
        bad = tmp_path / "broken.png"
    with pytest.raises(BadInput, match=message):
        host.open([tiny.picture(0), bad], ["left ?", "left ?"])


def test_a_truncated_picture_is_named_too(host, tiny, tmp_path):
    Image.fromarray(tiny.picture(0, 200, 200)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    with pytest.raises(BadInput, match=r"row 0: image '.*cut.png': damaged"):
        host.open([tmp_path / "cut.png"], ["left ?"])


def test_questions_are_checked(host, tiny):
    with pytest.raises(BadInput, match="as many images as questions, and at least one: 1 and 2"):
        host.open([tiny.picture(0)], ["a", "b"])
    with pytest.raises(BadInput, match="at least one: 0 and 0"):
        host.open([], [])
    with pytest.raises(BadInput, match="question 0: needs a string, got int"):
        host.open([tiny.picture(0)], [3])
    with pytest.raises(BadInput, match="question 0: contains the image token '<image>'"):
        host.open([tiny.picture(0)], ["what is <image> ?"])


def test_prompts_are_those_of_the_processor(folders, host, tiny):
    processor = AutoProcessor.from_pretrained(folders(text_tower=True))
    row = host.open([tiny.picture(0)], [tiny.questions[3]]).rows[0]
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": tiny.questions[3]}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    wanted = processor(images=Image.fromarray(tiny.picture(0)), text=text)["input_ids"][0]
    assert row.ids.tolist() == list(wanted)


def test_score_wants_answers_for_each_row_and_ratios_are_checked(host, tiny):
    p = host.open([tiny.picture(0)], ["left ?"])
    for wrong in ([], [[]], ["red"], [["red"], ["red"]]):
        with pytest.raises(BadInput, match="score: needs a list of at least one accepted answer for each of 1 rows"):
            p.score(wrong)
    with pytest.raises(BadInput, match="max_new_tokens = 0 is below 1"):
        p.decode(max_new_tokens=0)
    q = host.open([tiny.picture(0)], ["left ?"])
    with pytest.raises(BadInput, match=r"outside, row 0: keep ratio 1.5 is outside \(0, 1\]"):
        q.thin(None, 1.5)
    with pytest.raises(BadInput, match="outside: 2 compressors and 1 ratios for 1 rows"):
        q.thin([None, None])

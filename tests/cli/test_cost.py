"""`foveate cost`: from a configuration alone, equal to what the loaded model forecasts."""

from __future__ import annotations

import json
import shutil

import pytest

from foveate.cli.cost import cost, size_of
from foveate.models.on_paper import paper_host, picture_shape, shipped_models
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

TWO = Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))
G, T = 1e9, 1e12


@pytest.mark.parametrize(
    "plan",
    [
        *(UNCOMPRESSED, BLIND, TWO),
        Plan.of(input=("downsample", 0.25), decode=("look_m", 0.5)),
        Plan.of(outside=("trim", 0.5)),
    ],
)
def test_a_configuration_costs_what_the_loaded_model_does(folder, host, plan):
    made = paper_host(folder)
    assert (made.shape, made.grid, made.encoder_depth, made.decoder_depth, made.signals) == (
        *(host.shape, host.grid),
        *(host.encoder_depth, host.decoder_depth, host.signals),
    )
    assert made.forecast(plan, made.prompt_shape(9), 3, 2) == host.forecast(plan, host.prompt_shape(9), 3, 2)


def test_a_single_file_is_enough_and_its_dtype_sets_the_bytes_of_the_cache(call, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    half = json.loads(call("cost", "--model", tmp_path / "config.json", "--json").out)
    whole = json.loads(call("cost", "--model", folder, "--json").out)
    assert 2 * half["plan"]["kv_bytes"] == whole["plan"]["kv_bytes"]
    assert half["plan"]["flops"] == whole["plan"]["flops"]


def test_the_dtype_of_the_weights_can_be_named(call, folder):
    half = json.loads(call("cost", "--model", folder, "--dtype", "bfloat16", "--json").out)
    whole = json.loads(call("cost", "--model", folder, "--dtype", "float32", "--json").out)
    assert 2 * half["plan"]["kv_bytes"] == whole["plan"]["kv_bytes"]
    assert call("cost", "--model", folder, "--dtype", "int8").refused("cost", "int8")


def test_of_a_hub_id_the_small_files_are_enough(call, folder, monkeypatch):
    from foveate.models import on_paper

    for name in ("read_config", "load_processor"):
        real = getattr(on_paper, name)
        monkeypatch.setattr(on_paper, name, lambda source, about, real=real: real(str(folder), about))
    found = json.loads(call("cost", "--model", "owner/name", "--text", 9, "--json").out)
    local = json.loads(call("cost", "--model", folder, "--text", 9, "--json").out)
    assert found["model"] == "owner/name" and found["plan"] == local["plan"]
    monkeypatch.undo()
    assert call("cost", "--model", "owner/name").refused("cost", "owner/name")


def test_the_report_holds_both_passes_and_their_share(call, folder, host):
    found = json.loads(call("cost", "--model", folder, "--plan", TWO.label(), "--text", 9, "--answer", 3, "--json").out)
    shape = host.prompt_shape(9)
    ledger, full = host.forecast(TWO, shape, 3), host.forecast(UNCOMPRESSED, shape, 3)
    assert found["plan"]["by_stage"] == ledger.by_stage() and found["uncompressed"]["flops"] == full.total
    assert found["share"] == ledger.total / full.total and found["plan"]["tokens"]["prefill"] == 2
    text = call("cost", "--model", folder, "--plan", TWO.label(), "--text", 9, "--answer", 3).out
    assert text.rstrip().endswith(f"{100 * found['share']:.1f} % of the uncompressed FLOPs")


def test_pictures_are_given_by_their_sizes(call):
    found = json.loads(
        call("cost", "--model", "qwen2.5-vl-7b", "--image", "1024x768", "--image", "28x56", "--json").out
    )
    assert found["images"] == [[1024, 768], [28, 56]]
    tokens = round(1024 / 28) * round(768 / 28)  # a token is 28 x 28 pixels; the small picture grows to 56 x 84
    assert found["visual_tokens"] == found["plan"]["tokens"]["prefill"] == tokens + 6
    shown = call("cost", "--model", "qwen2.5-vl-7b", "--image", "1024x768").out
    assert shown.startswith(f"qwen2.5-vl-7b, pictures of 1024x768: 1 view, {tokens} visual tokens and 32 of text\n")


def test_the_processors_settings_beside_a_configuration_count(tmp_path):
    shutil.copy(shipped_models()["qwen2.5-vl-7b"], tmp_path / "config.json")
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    settings |= {"min_pixels": 3136, "max_pixels": 100 * 28 * 28}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert picture_shape(paper_host("qwen2.5-vl-7b"), [(1024, 768)], 8).n_visual == 999
    assert picture_shape(paper_host(tmp_path), [(1024, 768)], 8).grids == ((1, 8, 11),)  # 88 of 100 tokens at most


@pytest.mark.parametrize(
    ("model", "size", "views", "visual", "text"),
    [
        ("llava-1.5-7b", (1024, 768), 1, 576, 0),
        ("llava-onevision-7b", (1024, 768), 7, 27 * 27 + 54 * 73, 54),  # 54 x 73 of a 2 x 3 map show the picture
        ("qwen2.5-vl-7b", (1024, 768), 1, 27 * 37, 0),
        ("qwen3-vl-8b", (1024, 768), 1, 24 * 32, 0),
        ("internvl3-8b", (1024, 768), 13, 13 * 256, 2),  # 4 x 3 tiles and all of it
        ("internvl3-8b", (448, 448), 1, 256, 2),
        # 4 x 3 tiles behind two markers each, three line breaks, a double one, and three markers of the whole
        ("smolvlm2-2.2b", (1024, 768), 13, 13 * 81, 12 * 2 + 2 + 1 + 3),
    ],
)
def test_published_models_cut_pictures_as_they_are_published(model, size, views, visual, text):
    shape = picture_shape(paper_host(model), [size], 50)
    assert (len(shape.grids), shape.n_visual, shape.n_text - 50) == (views, visual, text)


def test_llava_15_7b_costs_the_figures_worked_out_from_its_published_sizes():
    host = paper_host("llava-1.5-7b")
    full = host.forecast(UNCOMPRESSED, host.prompt_shape(64))
    parts = {(stage, what): n for stage, what, n, kind in full.entries if kind == "matrix"}
    assert round(parts["encoder", "blocks"] / G, 1) == 365.3
    assert round(parts["encoder", "patch embedding"] / G, 3) == 0.694
    assert round(full.by_stage("matrix")["projector"] / G, 2) == 24.16
    assert round(full.by_stage("matrix")["prefill"] / T, 3) == 8.504
    assert full.kv_bytes_end == 640 * 524_288


def test_visionzip_at_a_third_keeps_192_tokens_of_llava_15():
    host = paper_host("llava-1.5-7b")
    found = cost(host, Plan.of(outside=("visionzip", 1 / 3)), 64)
    assert found["plan"]["tokens"]["prefill"] == 192
    assert cost(host, Plan.of(outside=("visionzip", 1 / 9)), 64)["plan"]["tokens"]["prefill"] == 64


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--plan", "outside:visonzip@0.5"], ["visonzip", "visionzip"]),
        (["--plan", "blnd"], ["blnd", "near: blind"]),
        (["--plan", "outside:random@0.5 + projector:average_pool@0.5"], ["average_pool", "grid"]),
        (["--text", "0"], ["n_text 0"]),
        (["--answer", "-1"], ["new_tokens -1"]),
        (["--image", "10"], ["--image '10'", "1024x768"]),
        (["--image", "0x9"], ["0x9", "at least 1x1"]),
        (["--image", "99999x99999"], ["99999x99999", "at most 64000000 pixels"]),
        (["--model", "/not/there"], ["/not/there", "no config.json"]),
        (["--model", "llava-1.5-8b"], ["llava-1.5-8b", "near: llava-1.5-7b"]),
        (["--model", "qwen2.5-vl-7b", "--image", "2000x3"], ["3 x 2000", "200 times"]),
    ],
)
def test_what_cannot_be_is_one_line(call, folder, argv, words):
    assert call("cost", "--model", folder, *argv).refused("cost", *words)


def test_a_model_of_another_family_is_named(call, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert call("cost", "--model", tmp_path).refused("cost", "'llama'", "llava")


def test_a_host_without_weights_cannot_run(folder):
    with pytest.raises(ValueError, match="only its configuration was read"):
        paper_host(folder).open([], [])


def test_plans_of_a_model_are_compared_without_the_command_line(host):
    assert cost(host, UNCOMPRESSED, 5)["share"] == 1.0


def test_sizes_are_read_as_they_are_written():
    assert size_of("1024x768") == size_of(" 1024 X 768 ") == size_of("1024×768") == (1024, 768)

"""`foveate cost`: from a configuration alone, equal to what the loaded model forecasts."""

from __future__ import annotations

import json

import pytest

from foveate.cli.cost import cost, host_of_config
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

TWO = Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))


@pytest.mark.parametrize(
    "plan", [UNCOMPRESSED, BLIND, TWO, Plan.of(input=("downsample", 0.25), decode=("look_m", 0.5))]
)
def test_a_configuration_costs_what_the_loaded_model_does(folder, host, plan):
    made = host_of_config(str(folder))
    assert (made.shape, made.grid, made.encoder_depth, made.decoder_depth) == (
        *(host.shape, host.grid),
        *(host.encoder_depth, host.decoder_depth),
    )
    assert made.forecast(plan, 9, 3, 2) == host.forecast(plan, 9, 3, 2)


def test_a_single_file_is_enough_and_its_dtype_sets_the_bytes_of_the_cache(call, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    half = json.loads(call("cost", "--model", tmp_path / "config.json", "--json").out)
    whole = json.loads(call("cost", "--model", folder, "--json").out)
    assert 2 * half["plan"]["kv_bytes"] == whole["plan"]["kv_bytes"]
    assert half["plan"]["flops"] == whole["plan"]["flops"]


def test_the_report_holds_both_passes_and_their_share(call, folder, host):
    found = json.loads(call("cost", "--model", folder, "--plan", TWO.label(), "--text", 9, "--answer", 3, "--json").out)
    ledger, full = host.forecast(TWO, 9, 3), host.forecast(UNCOMPRESSED, 9, 3)
    assert found["plan"]["by_stage"] == ledger.by_stage() and found["uncompressed"]["flops"] == full.total
    assert found["share"] == ledger.total / full.total and found["plan"]["tokens"]["prefill"] == 2
    text = call("cost", "--model", folder, "--plan", TWO.label(), "--text", 9, "--answer", 3).out
    assert text.rstrip().endswith(f"{100 * found['share']:.1f} % of the uncompressed FLOPs")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--plan", "outside:visonzip@0.5"], ["visonzip", "visionzip"]),
        (["--plan", "blnd"], ["blnd", "near: blind"]),
        (["--plan", "outside:random@0.5 + projector:average_pool@0.5"], ["average_pool", "grid"]),
        (["--text", "0"], ["n_text 0"]),
        (["--answer", "-1"], ["new_tokens -1"]),
        (["--model", "/not/there"], ["/not/there"]),
    ],
)
def test_what_cannot_be_is_one_line(call, folder, argv, words):
    assert call("cost", "--model", folder, *argv).refused("cost", *words)


def test_a_model_of_another_family_is_named(call, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert call("cost", "--model", tmp_path).refused("cost", "'llama'", "llava")


def test_a_host_without_weights_cannot_run(folder):
    with pytest.raises(ValueError, match="only its configuration was read"):
        host_of_config(str(folder)).open([], [])


def test_plans_of_a_model_are_compared_without_the_command_line(host):
    assert cost(host, UNCOMPRESSED, 5)["share"] == 1.0

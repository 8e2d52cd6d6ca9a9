"""What choosing costs: which calls are timed, what they are compared with, and what the files say; never how fast."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from foveate.analysis import compressor_times as times
from foveate.cli.main import main
from foveate.compressors.base import Reducer, Resampler
from foveate.compressors.registry import COMPRESSORS, make
from foveate.plans.cost import ViTShape, vit_block


@pytest.fixture(scope="module")
def few():
    """A method of each kind without weights, timed once."""
    listed = times.cases(("outside", "prefill"), ("fastv", "visionzip", "diversity"))
    return listed, times.measure(listed, rounds=1)


def test_every_reducer_and_resampler_in_front_of_the_cache_is_a_case_at_both_ratios():
    found = [(*case.key, case.keep) for case in times.cases()]
    wanted = [key for key, cls in COMPRESSORS.items() if key[0] in times.TIMED]
    wanted = [key for key in wanted if issubclass(COMPRESSORS[key], Reducer | Resampler)]
    assert sorted(found) == sorted((*key, keep) for key in wanted for keep in (0.5, 0.11))
    assert ("decode", "look_m", 0.5) not in found and ("input", "downsample", 0.5) not in found


@pytest.mark.parametrize(
    ("name", "grid", "tokens", "counts"),
    [
        ("diversity", (1, 24, 24), 576, [288, 63]),
        ("visionzip", (1, 24, 24), 577, [288, 63]),  # CLS beside the patches
        ("egoprune", (4, 12, 12), 576, [288, 63]),
    ],
)
def test_a_call_has_576_tokens_of_width_1024(name, grid, tokens, counts):
    listed = times.cases(("outside",), (name,))
    given = [case.call.args[0] for case in listed]
    assert all(t.x.shape == (1, tokens, 1024) and t.grid == grid for t in given)
    assert [case.count for case in listed] == [case.call.args[1] for case in listed] == counts


def test_where_a_count_cannot_be_given_the_nearest_below_is_asked_for():
    assert [case.count for case in times.cases(("projector",), ("average_pool",))] == [256, 49]


def test_the_block_is_one_of_vit_l():
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = times.block(seed=0)()
    shape = ViTShape(dim=1024, mlp=4096, layers=24, heads=16, patch=14)
    assert out.shape == (1, 577, 1024) and out.dtype == torch.float32
    assert counter.get_total_flops() == pytest.approx(vit_block(shape, 577), rel=0.01)


def test_patches_are_alike_within_an_area_and_seen_again_where_the_camera_pans():
    image = times.patches((1, 8, 8), 256, seed=0)[0].view(8, 8, -1)
    assert (
        cosine_similarity(image[0, 0], image[3, 3], dim=0)
        > 0.8
        > 0.3
        > cosine_similarity(image[0, 0], image[0, 4], dim=0)
    )
    video = times.patches((2, 8, 8), 256, seed=0)[0].view(2, 8, 8, -1)
    assert cosine_similarity(video[0, 2, 5], video[1, 2, 1], dim=0) > 0.95
    assert torch.equal(video, times.patches((2, 8, 8), 256, seed=0)[0].view(2, 8, 8, -1))


def test_kinds_are_read_off_what_a_method_does():
    of = {name: times.kind_of(make("outside", name)) for name in ("trim", "hiprune", "visionzip", "diversity")}
    assert of == {"trim": "scores", "hiprune": "scores", "visionzip": "pairs", "diversity": "pairs"}
    assert times.kind_of(make("encoder", "ficoco")) == "pairs"  # no product, but a map of all pairs
    assert times.kind_of(make("projector", "ldpv2")) == "network"


@pytest.mark.parametrize(
    "key",
    [
        *(("outside", name) for name in ("chat_univi", "diversity", "egoprune", "par", "vispruner")),
        *(("projector", name) for name in ("llava_scissor", "longvlm", "seq_compression")),
        ("prefill", "pact"),
        ("prefill", "saint"),
    ],
    ids="-".join,
)
def test_graphs_clusters_and_greedy_picks_have_a_bar_however_many_steps_they_take(key):
    assert times.BARS[times.kind_of(make(*key))] == 0.2


def test_a_method_has_one_kind_whatever_the_ratio(few):
    listed, timings = few
    assert [(t.stage, t.method, t.keep) for t in timings] == [(*case.key, case.keep) for case in listed]
    kinds = {(t.method, t.keep): (t.kind, t.bar) for t in timings}
    assert kinds["diversity", 0.5] == kinds["diversity", 0.11] == ("pairs", 0.2)
    assert kinds["visionzip", 0.5] == ("pairs", 0.2) and kinds["fastv", 0.11] == ("scores", 0.05)
    operations = {(t.method, t.keep): t.operations for t in timings}
    assert operations["diversity", 0.5] > 2 * operations["diversity", 0.11] and operations["fastv", 0.5] < 20


def test_shares_are_positive_and_torch_has_its_threads_back(few):
    assert all(0 < t.low <= t.share <= t.high for t in few[1])
    torch.set_num_threads(2)
    times.measure(times.cases(("prefill",), ("fastv",)), rounds=1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_shares_are_medians_of_rounds_against_the_bar():
    method = make("prefill", "fastv")
    case = times.Case("prefill", method, 0.5, 288, lambda: None, 6, [0.01, 0.2, 0.04, 0.03, 0.05])
    timing = case.timing("scores")
    assert (timing.share, timing.low, timing.high, timing.verdict) == (0.04, 0.03, 0.05, "within 5%")
    case.shares = [0.06]
    assert case.timing("scores").verdict == "above 5%" and case.timing("pairs").verdict == "within 20%"
    assert case.timing("network").verdict == "no bar"


def test_the_command_prints_a_table_or_json_and_writes_both_files(tmp_path, capsys):
    argv = ["bench-compressors", "--stages", "prefill", "--methods", "fastv,stride", "--rounds", "1", "--seed", "3"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "seed: 3" in printed and "torch" in printed and printed.count("within 5%") == 4
    lines = (tmp_path / "compressors.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [(row["method"], row["count"]) for row in rows] == [
        (m, c) for m in ("fastv", "stride") for c in ("288", "63")
    ]
    page = (tmp_path / "compressors.md").read_text()
    assert "seed 3" in page and "| prefill | fastv | 0.5 | 288 | scores |" in page
    assert main([*argv, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rounds"] == 1 and found["machine"] and len(found["timings"]) == 4
    assert {entry["bar"] for entry in found["timings"]} == {0.05}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--stages", "decode"], ["--stages", "decode"]),
        (["--methods", "visonzip"], ["--methods", "visonzip", "visionzip"]),
        (["--ratios", "2"], ["--ratios", "'2'"]),
        (["--rounds", "0"], ["--rounds", "0"]),
    ],
)
def test_what_cannot_be_is_one_line(argv, words, tmp_path, capsys):
    assert main(["bench-compressors", "--out", str(tmp_path), *argv]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and all(word in told for word in words)

"""A bench of stages: which plans, a table that grows and is never run twice, gains over `random`, the page."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from foveate.analysis import stages
from foveate.analysis.bench import random_rival, rows_of, write_csv
from foveate.analysis.walls import Wall
from foveate.compressors.learned import untrained
from foveate.compressors.registry import COMPRESSORS, make
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan
from foveate.rollouts.replay import fill

RANDOM, STRIDE = Plan.of(outside=("random", 0.5)), Plan.of(outside=("stride", 0.5))
LDPV2 = Plan.of(projector=("ldpv2", 0.25))


def labels(plans):
    return [plan.label() for plan in plans]


@pytest.fixture
def ran(monkeypatch):
    """The plans of every table that is filled."""
    seen = []

    def watched(host, inputs, plans, *args, **kwargs):
        seen.append(labels(plans))
        return fill(host, inputs, plans, *args, **kwargs)

    monkeypatch.setattr(stages, "fill", watched)
    return seen


def test_every_method_of_the_stages_that_runs_stands_beside_the_controls(host):
    plans, refused = stages.stage_plans(host, ("encoder", "decode"), (0.5, 0.25))
    assert plans[0] == UNCOMPRESSED and plans[-1] == BLIND and len(set(plans)) == len(plans)
    some = [name for at, name in COMPRESSORS if at == "encoder" and host.supports(at, name) is None]
    assert {f"encoder:{name}@0.5" for name in some} <= set(labels(plans)) | set(refused)
    names = ("random", "random_renumbered", "stride")
    controls = [f"outside:{name}@{ratio}" for ratio in (0.5, 0.25) for name in names]
    assert [label for label in labels(plans) if label.startswith("outside")] == controls
    assert {"input:downsample@0.25", "decode:random@0.25"} <= set(labels(plans))


def test_on_videos_methods_for_videos_are_benched_and_frames_are_a_control(host, inputs):
    film = host.open([np.stack([inputs[0].image] * 4)], ["left ?"]).shapes
    plans, _ = stages.stage_plans(host, ("projector",), (0.5,), ("meteor",), film)
    assert {"projector:meteor@0.5", "input:frames@0.5", "input:downsample@0.5"} <= set(labels(plans))
    still, refused = stages.stage_plans(host, ("projector",), (0.5,), ("meteor",))
    assert "input:frames@0.5" not in labels(still) and "is for videos" in refused["projector:meteor"]


def test_a_ratio_that_a_method_cannot_give_becomes_the_nearest_it_can_with_random_beside_it(host):
    asked = (host, ("projector",), (0.5, 0.2), ("average_pool",))
    plans, refused = stages.stage_plans(*asked)
    assert {"projector:average_pool@0.5", "projector:average_pool@0.2"} <= set(refused)
    plans, refused = stages.stage_plans(*asked, nearest=True)
    pooled = [plan["projector"].keep for plan in plans if plan["projector"].method == "average_pool"]
    assert not refused and pooled == [0.5625, 0.25]
    assert all(Plan.of(outside=("random", keep)) in plans for keep in (0.5, 0.2, *pooled))


def test_a_choice_of_methods_leaves_the_controls(host):
    plans, _ = stages.stage_plans(host, ("prefill",), (0.5,), ("fastv",))
    wanted = [
        "outside:random@0.5",
        "outside:random_renumbered@0.5",
        "outside:stride@0.5",
        "prefill:random@0.5",
        "prefill:stride@0.5",
        "prefill:fastv@0.5",
    ]
    assert [label for label in labels(plans) if label.endswith("@0.5") and "input" not in label] == wanted


def test_what_a_model_cannot_run_has_its_reason(host):
    plans, refused = stages.stage_plans(host, ("projector",), (0.25,))
    assert "ldpv2" in refused["projector:ldpv2"] and LDPV2 not in plans


def test_a_table_grows_by_what_it_lacks_and_reads_the_rest(host, inputs, tmp_path, ran):
    path, some = tmp_path / "table.parquet", inputs[:3]
    first = stages.grown(host, some, [UNCOMPRESSED, RANDOM, BLIND], path)
    both = stages.grown(host, some, [UNCOMPRESSED, STRIDE, RANDOM, BLIND], path)
    assert ran == [["none", "outside:random@0.5", "blind"], ["none", "outside:stride@0.5"]]
    assert first.plans == (UNCOMPRESSED, RANDOM, BLIND) and both.plans == (UNCOMPRESSED, STRIDE, RANDOM, BLIND)
    at_once = fill(host, some, list(both.plans), tmp_path / "once.parquet", progress=False)
    for name in ("cost", "tokens", "kv", "correct"):
        assert np.array_equal(getattr(both, name), getattr(at_once, name)), name
    assert np.allclose(both.prob, at_once.prob, atol=1e-6)
    again = stages.grown(host, some, [UNCOMPRESSED, STRIDE], path)
    assert len(ran) == 2 and np.array_equal(again.cost, both.cost[:, :2])
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("table")] == ["table.parquet"]


def test_a_table_of_other_inputs_is_refused_and_left_alone(host, inputs, tmp_path):
    path = tmp_path / "table.parquet"
    stages.grown(host, inputs[:2], [UNCOMPRESSED, BLIND], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="table.parquet: holds a table of other inputs"):
        stages.grown(host, inputs[1:3], [UNCOMPRESSED, BLIND], path)
    assert path.read_bytes() == before


def test_a_method_that_is_trained_anew_is_run_anew(host, inputs, tmp_path, ran, monkeypatch):
    path, plans = tmp_path / "table.parquet", [UNCOMPRESSED, LDPV2, RANDOM]
    for seed in (0, 0, 1):
        network = untrained(make("projector", "ldpv2"), host.widths, host.matrices(), seed).network
        for weight in network.parameters():
            weight.requires_grad_(False).add_(seed)
        monkeypatch.setitem(host.learned, ("projector", "ldpv2"), network)
        stages.grown(host, inputs[:2], plans, path)
    assert ran == [labels(plans), ["none", "projector:ldpv2@0.25"]]


def test_gains_are_over_random_at_the_same_ratio_and_paired(table):
    zip_, fastv = table.plans[3:]
    random = Plan.of(outside=("random", 0.25))
    table = replace(table, plans=(UNCOMPRESSED, BLIND, random, zip_, fastv))
    gains = [row.gain for row in rows_of(table)]
    assert gains[:3] == [None, None, None]  # random is right on 2 of 4 and 1 of 4, a regime each
    assert gains[3][0] == 0 and gains[4][0] == pytest.approx(-0.125)  # 1 and 2 of 4; 1 and 1 of 4
    assert gains[4][1] < -0.125 < gains[4][2]
    correct = table.correct.copy()
    correct[:, 3] = correct[:, 2]
    assert rows_of(replace(table, correct=correct))[3].gain == (0, 0, 0), "the same answers differ in no resample"


def test_the_rival_is_of_the_own_stage_where_there_is_one():
    late = Plan.of(prefill=("random", 0.5))
    assert random_rival(Plan.of(prefill=("fastv", 0.5)), {RANDOM, late}) == late
    assert random_rival(Plan.of(prefill=("fastv", 0.5)), {RANDOM}) == RANDOM
    assert random_rival(Plan.of(encoder=("tome", 0.5)), {RANDOM}) == RANDOM
    for plan in (UNCOMPRESSED, BLIND, RANDOM, late, Plan.of(encoder=("tome", 0.25))):
        assert random_rival(plan, {RANDOM, late}) is None


def test_plans_that_decode_are_those_of_the_decoders_sections():
    fastv, look_m = Plan.of(prefill=("fastv", 0.5)), Plan.of(decode=("look_m", 0.5))
    controls = {UNCOMPRESSED, RANDOM, BLIND}
    plans = [*controls, fastv, look_m, Plan.of(encoder=("tome", 0.5))]
    assert stages.decoded(plans, ("encoder", "prefill")) == controls | {fastv}
    assert stages.decoded(plans, ("decode",)) == controls | {look_m}
    assert stages.decoded(plans, ("encoder", "outside")) == set()


def test_a_page_has_a_table_for_each_stage_with_the_controls_and_what_it_ran_on(host, table):
    header = {"command": "foveate bench --seed 7", "rounds": 0, "batches": (1,), "seed": 7}
    rows = rows_of(table)
    page = stages.page(rows, ("outside", "prefill"), host, table, header)
    head, outside, prefill = page.split("\n## ")
    assert all(said in head for said in ("foveate bench --seed 7", "seed 7", "even 4, odd 4", "torch", "not measured"))
    first = {
        part.splitlines()[0]: [line.split(" | ")[0] for line in part.splitlines()[4:]] for part in (outside, prefill)
    }
    shared = ["| none", "| blind", "| input:downsample@0.25"]
    assert first["outside"] == [*shared, "| outside:visionzip@0.25"]
    assert first["prefill"] == [*shared, "| prefill:fastv@0.25"]
    assert "| outside:visionzip@0.25 | 4.0 | 0.400 | 0.1 (0.50) | not measured | 37.5 | - | 25 | 50 |" in outside


def test_a_page_says_what_was_not_run_and_why(host, table):
    header = {"command": "foveate bench", "rounds": 0, "batches": (1,), "seed": 0}
    reasons = {"projector:dtd@0.1": "too few", "projector:dtd@0.05": "far too few", "projector:mqt": "has no weights"}
    page = stages.page(rows_of(table), ("projector",), host, table, header, reasons)
    _, behind = page.split("## Not run\n")
    assert behind.split("\n") == [
        "",
        "* `projector:dtd` at 0.1, 0.05: too few",
        "* `projector:mqt`: has no weights",
        "",
    ]


def test_a_section_of_the_decoder_has_a_second_table_and_others_one_wall_column(host, table):
    ones = {plan: {1: Wall(0.5, 0.75, 2048.0, 4096.0), 16: Wall(0.25, 0.5, 3072.0, 5120.0)} for plan in table.plans}
    visionzip, fastv = table.plans[3:]
    ones[visionzip] = {1: Wall(0.6, None, 2048.0, 2048.0)}
    header = {"command": "foveate bench", "rounds": 3, "batches": (1, 16), "seed": 0}
    page = stages.page(rows_of(table, ones), ("outside", "prefill"), host, table, header)
    head, outside, prefill = page.split("\n## ")
    assert "medians of 3 rounds, batch 1" in head and "for each of 16 behind it" in head
    assert "0.1 (0.50) | 0.60 | 37.5" in outside and "first" not in outside
    titles = [f"{what}, b {b}" for b in (1, 16) for what in ("first", "token", "KV prefill", "KV end")]
    assert f"| plan | {' | '.join(titles)} |" in prefill
    assert "| prefill:fastv@0.25 | 0.50 | 0.75 | 2.0 | 4.0 | 0.25 | 0.50 | 3.0 | 5.0 |" in prefill
    assert "outside:visionzip" not in prefill


def test_a_csv_file_has_what_decoding_takes_where_it_was_timed(table, tmp_path):
    plans = table.plans
    walls = {plans[0]: {1: Wall(1.0, 1.0, 1000.0, 1100.0)}, plans[3]: {1: Wall(0.6, None, 500.0, 500.0)}}
    write_csv(rows_of(table, walls), tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    columns = ["first_share_b1", "token_share_b1", "kv_prefill_bytes_b1", "kv_end_bytes_b1"]
    assert [rows[0][name] for name in columns] == ["1", "1", "1000", "1100"]
    assert [rows[3][name] for name in columns] == [""] * 4 and rows[3]["wall_share"] == "0.6"
    write_csv(rows_of(table), tmp_path / "b.csv")
    assert "first_share_b1" not in (tmp_path / "b.csv").read_text()

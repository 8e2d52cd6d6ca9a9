"""How much compression regimes bear: what moves, the factors, and the page."""

from dataclasses import replace

import numpy as np
import pytest

from foveate.analysis import bearing
from foveate.analysis.bench import Row
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast


def row(plan, **accuracy):
    return Row(plan, 0.9, 0.8, 1.0, {regime: (value, value, value) for regime, value in accuracy.items()}, 1, 1, 1)


def dtd(keep):
    return Plan.of(projector=("dtd", keep))


ROWS = [
    row(UNCOMPRESSED, idle=1.0, panning=0.9),
    row(dtd(0.5), idle=1.0, panning=0.8),
    row(dtd(0.1), idle=0.98, panning=0.2),
    row(BLIND, idle=0.0, panning=0.0),
]


def test_next_to_nothing_moves_in_an_idle_video_and_much_where_the_camera_pans():
    assert bearing.moving("idle32", "test", 4) < 0.02 < bearing.FAST < bearing.moving("panning", "test", 4)
    with pytest.raises(ValueError, match="counting: shows no videos"):
        bearing.moving("counting", "test", 1)


def borne(points):
    return {regime: str(found) for regime, found in bearing.factors(ROWS, points)["projector", "dtd"].items()}


def test_a_factor_is_one_over_the_smallest_keep_ratio_that_costs_no_more():
    assert borne(0.05) == {"idle": "10.0", "panning": "1.0"}
    assert borne(0.1) == {"idle": "10.0", "panning": "2.0"}


def test_a_factor_has_a_star_where_a_gentler_cut_costs_more():
    assert str(bearing.Borne.of({2.0: False, 4.0: True, 8.0: False})) == "4.0*"
    assert str(bearing.Borne.of({8.0: False, 4.0: True, 2.0: True})) == "4.0"
    assert str(bearing.Borne.of({2.0: False})) == "1.0"


def page(tables, moved, points):
    return bearing.page([bearing.Section.of("All", tables, points)], moved, points, "idle 4, panning 4", "a command")


def test_the_page_puts_still_regimes_first_and_gives_the_ratio():
    moved = {"panning": 0.3, "idle": 0.01, "idle32": 0.005}
    longer = [row(UNCOMPRESSED, idle32=0.9), row(dtd(0.05), idle32=0.9), row(Plan.of(projector=("evs", 0.5)), idle32=0)]
    text = page([ROWS, longer], moved, 0.1)
    assert (
        "| method | idle32 | idle | panning | still | fast | ratio | standing | turning | ratio | long | ratio |"
        in text
    )
    assert "| projector:dtd | 20.0 | 10.0 | 2.0 | 14.1 | 2.0 | 7.1 | 14.1 | 2.0 | 7.1 | 20.0 | 10.0 |" in text
    assert "| projector:evs | 1.0 | - | - | 1.0 | - | - | 1.0 | - | - | 1.0 | - |" in text
    assert "| right, % | 90 | 100 | 90 | | | | | | | | |" in text
    with pytest.raises(ValueError, match="regimes: 2 in which at most 4% moves, 0 with 10% or more"):
        page([ROWS, longer], moved | {"panning": 0.05}, 0.1)


def test_what_stands_before_a_static_camera_is_held_against_what_turns_however_much_moves():
    moved = {"panning": 0.3, "mover": 0.09, "when": 0.02}
    rows = [row(UNCOMPRESSED, mover=1.0, when=1.0, panning=1.0), row(dtd(0.2), mover=1.0, when=0.5, panning=0.5)]
    assert "| projector:dtd | 1.0 | 5.0 | 1.0 | 1.0 | 1.0 | 1.0 | 5.0 | 1.0 | 5.0 | - | - |" in page(
        [rows], moved, 0.05
    )


def test_questions_about_when_have_a_section_of_their_own(toy):
    table = toy.table(40)
    when = np.arange(40) % 4 == 0
    table = replace(table, templates=np.where(when, "part_of", "shape_coming"), correct=table.correct & ~when[:, None])
    every, seen, timed = bearing.sections([table], 0.05)
    assert [each.title for each in (every, seen, timed)] == ["All questions", "What is seen", "When it is seen"]
    assert set(timed.whole.values()) == {0.0}
    assert all(seen.whole[regime] >= every.whole[regime] for regime in seen.whole) and seen.whole != every.whole
    only = replace(table, templates=np.full(40, "shape_coming"))
    assert [each.title for each in bearing.sections([only], 0.05)] == ["All questions", "What is seen"]


def test_benches_of_different_models_are_refused(toy, tmp_path):
    for name, host in (("a", "toy"), ("b", "other")):
        about = {"host": host, "fingerprint": "0" * 64, "versions": {"torch": "2"}}
        (tmp_path / name).mkdir()
        replace(toy.table(8), meta=about).save(tmp_path / name / "table.parquet")
    with pytest.raises(SystemExit, match=r"different models or libraries .*/a is of toy .*/b is of other"):
        bearing.main(["--bench", f"{tmp_path / 'a'},{tmp_path / 'b'}"])


def test_a_folder_without_a_bench_is_named(tmp_path):
    with pytest.raises(SystemExit, match="bearing: no .*table.parquet: run `foveate bench --out"):
        bearing.main(["--bench", str(tmp_path)])

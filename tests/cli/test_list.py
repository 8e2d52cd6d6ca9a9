"""`foveate list`: one entry for each registered compressor."""

from __future__ import annotations

import json

import pytest

from foveate.cli.list import methods, page, support
from foveate.compressors.registry import COMPRESSORS

pytestmark = pytest.mark.fast


class Host:
    def supports(self, stage, name):
        return "visionzip: has no CLS here" if name == "visionzip" else None


def test_every_registered_method_is_listed_once_with_what_its_class_says(call):
    entries = json.loads(call("list", "--json").out)
    assert len(entries) == len(set(COMPRESSORS.values()))
    assert sorted((stage, entry["name"]) for entry in entries for stage in entry["stages"]) == sorted(COMPRESSORS)
    keys = ["name", "stages", "signals", "modality", "text_guided", "learned", "adaptive", "fidelity", "paper"]
    assert all(list(entry) == keys for entry in entries)
    fastv = next(entry for entry in entries if entry["name"] == "fastv")
    assert (fastv["stages"], fastv["signals"], fastv["text_guided"]) == (["prefill"], ["last_query"], True)


def test_the_table_has_a_line_for_each_method(call):
    lines = call("list").out.splitlines()
    assert lines[0].split()[:3] == ["name", "stages", "signals"]
    assert [line.split()[0] for line in lines[1:]] == [entry["name"] for entry in methods()]


def test_a_host_says_what_it_supports_and_why_not():
    entries = methods({"mine": Host()})
    found = {(entry["name"], stage): why for entry in entries for stage, why in entry["hosts"]["mine"].items()}
    assert found["visionzip", "outside"] == "visionzip: has no CLS here" and found["fastv", "prefill"] is None


def test_the_table_of_hosts_has_a_line_for_each_method_and_stage_and_numbers_the_reasons():
    entries = methods({"mine": Host(), "other": Host()})
    lines = support(entries).splitlines()
    rows = [line.split() for line in lines[1 : lines.index("")]]
    assert lines[0].split() == ["method", "stage", "mine", "other"]
    assert sorted((stage, name) for name, stage, *_ in rows) == sorted(COMPRESSORS)
    assert {tuple(row[2:]) for row in rows if row[0] != "visionzip"} == {("yes", "yes")}
    assert next(row for row in rows if row[0] == "visionzip")[2:] == ["(1)", "(1)"]
    assert lines[lines.index("") + 1 :] == ["(1) has no CLS here"]
    assert "| visionzip | outside | (1) | (1) |" in page(entries) and "* (1) has no CLS here" in page(entries)


def test_a_configuration_is_enough_to_tell_what_a_model_runs(call):
    lines = call("list", "--host", "qwen3-vl-8b", "--host", "llava-1.5-7b").out.splitlines()
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in lines}
    assert rows["method", "stage"] == ["qwen3-vl-8b", "llava-1.5-7b"]
    assert rows["visionzip", "outside"] == ["yes", "yes"]
    first, second = rows["tome", "encoder"]
    assert second == "yes" and f"{first} acts on patches, and this host's connector wants whole units of 4" in lines


def test_an_unknown_host_is_named(call):
    assert call("list", "--host", "/not/there").refused("list", "/not/there")
    assert call("list", "--host", "lava-1.5-7b").refused("list", "lava-1.5-7b", "near: llava-1.5-7b")

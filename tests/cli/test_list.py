"""`foveate list`: one entry for each registered compressor."""

from __future__ import annotations

import json

import pytest

from foveate.cli.list import methods
from foveate.compressors.registry import COMPRESSORS

pytestmark = pytest.mark.fast


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
    class Host:
        def supports(self, stage, name):
            return "visionzip: has no CLS here" if name == "visionzip" else None

    found = {(entry["name"], stage): reason for entry in methods(Host()) for stage, reason in entry["host"].items()}
    assert found["visionzip", "outside"] == "visionzip: has no CLS here" and found["fastv", "prefill"] is None


def test_an_unknown_host_is_named(call):
    assert call("list", "--host", "/not/there").refused("list", "/not/there")

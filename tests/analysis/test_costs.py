"""The page of costs is what its command prints, and what it says agrees with the cost model."""

from __future__ import annotations

import re

import pytest

from foveate.analysis.costs import COMMAND, GPU_COMMAND, MODELS, PLANS, line, main
from foveate.models.on_paper import paper_host, picture_shape
from foveate.plans.plan import UNCOMPRESSED, Plan


def without_versions(text: str) -> str:
    return re.sub(r"\(torch [^)]*\)", "", text)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "costs.md"
    main(["--out", str(path)])
    return path.read_text()


def test_the_committed_page_is_what_the_command_writes(made, root):
    committed = (root / "docs" / "costs.md").read_text()
    assert without_versions(committed) == without_versions(made), f"run: {COMMAND}"
    assert COMMAND in made and GPU_COMMAND in made and re.search(r"\(torch \d\S*, transformers \d\S*\)", made)


def test_every_model_has_a_table_with_every_plan(made):
    sections = made.split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == [*MODELS, "Milliseconds on a GPU"]
    for section in sections[:-1]:
        names = re.findall(r"^\| ([a-z][^|]*) \|", section, re.M)
        assert names == ["plan", *(name for name, _ in PLANS)]


def test_a_line_holds_the_forecasts_numbers():
    host = paper_host("llava-1.5-7b")
    shape = picture_shape(host, [(1024, 768)], 64)
    full, plan = host.forecast(UNCOMPRESSED, shape, 16), Plan.of(outside=("visionzip", 1 / 3))
    ledger = host.forecast(plan, shape, 16)
    cells = [cell.strip() for cell in line(host, "zip", plan, shape, full.total).strip("|").split("|")]
    assert cells[:3] == ["zip", "192", "192"]
    assert float(cells[8]) == round(ledger.total / 1e12, 3)
    assert cells[9] == f"{100 * ledger.total / full.total:.1f} %"
    assert float(cells[10]) == round((192 + 64 + 15) * 524_288 / 2**20, 1)  # the last answer token is not cached


def test_a_plan_that_a_model_cannot_run_says_why():
    host = paper_host("qwen3-vl-8b")
    found = line(host, "tome", Plan.of(encoder=("tome", 0.5)), host.prompt_shape(64), 1)
    assert "whole units of 4" in found and found.count("|") == 12

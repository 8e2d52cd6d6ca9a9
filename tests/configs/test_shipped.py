"""Every shipped configuration file is read by the code that users run, against the methods that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.cli.config import read_config
from foveate.cli.reading import read_plan
from foveate.compressors.registry import COMPRESSORS
from foveate.plans.files import CONFIGS, find_config
from foveate.plans.portfolio import ActionTable, Portfolio, one_stage_plans
from foveate.tasks.registry import TASKS

pytestmark = pytest.mark.fast
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))


def read_portfolio(name: str) -> None:
    portfolio = Portfolio.from_yaml(name, COMPRESSORS)
    assert portfolio.name == name
    assert ActionTable.from_portfolio(portfolio).shape[0] > 1 and len(one_stage_plans(portfolio)) > 3


def read_named_plan(name: str) -> None:
    assert read_plan(name).active


def read_run(name: str) -> None:
    from foveate.cli.training import RunConfig

    config = read_config(RunConfig, find_config(".", name))
    Portfolio.from_yaml(config.portfolio, COMPRESSORS)
    assert config.data.tasks and set(config.data.tasks) <= set(TASKS)
    assert config.out.startswith("runs/")


READERS = {"portfolios": read_portfolio, "plans": read_named_plan, ".": read_run}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_shipped_file_is_read_by_its_name(file: Path):
    READERS[str(file.parent)](file.stem)


def test_there_are_files_of_every_kind():
    assert {str(file.parent) for file in FILES} == set(READERS)
    assert not list(CONFIGS.rglob("*.yml"))


def test_a_method_that_is_not_there_is_refused_in_either_kind(tmp_path):
    (tmp_path / "p.yaml").write_text("version: 1\nname: p\nstages:\n  outside: {visionsip: [0.5]}\n")
    with pytest.raises(ValueError, match=r"p\.yaml:4: .*unknown method at outside; near: visionzip"):
        Portfolio.from_yaml(tmp_path / "p.yaml", COMPRESSORS)
    (tmp_path / "q.yaml").write_text("version: 1\nplan:\n  outside: {method: visionsip, keep: 0.5}\n")
    with pytest.raises(ValueError, match="outside: unknown method 'visionsip'; near: visionzip"):
        read_plan(str(tmp_path / "q.yaml"))

"""The wheel holds what the checkout holds: an editable install would hide a forgotten package or data file."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folders(root: Path) -> set[str]:
    """Top-level folders that are packages."""
    return set(
        tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"].values()
    )


@pytest.fixture(scope="module")
def wheel(root: Path, tree: list[str], tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built offline from a copy of the files that git lists: no leftover of an earlier build gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in tree:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, source / path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_every_package_and_nothing_else(wheel, tree, folders):
    expected = {f"foveate/{path}" for path in tree if path.split("/")[0] in folders}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert sorted(expected - held) == [], "list the package or its kind of file in pyproject.toml"
    assert sorted(held - expected) == []


def test_the_licence_and_the_command_travel_along(wheel):
    text = {name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert b"Apache License" in wheel.read(text["licenses/LICENSE"])
    assert wheel.read(text["entry_points.txt"]).decode().split() == [
        "[console_scripts]",
        "foveate",
        "=",
        "foveate.cli.main:main",
        "[lmms_eval.models]",
        "foveate",
        "=",
        "foveate.serving.lmms:manifest",
    ]


def test_the_unpacked_wheel_imports_from_any_folder_and_reads_its_data(wheel, folders, tmp_path):
    """In a process that sees only the wheel and the libraries: -S leaves out the editable install's finder."""
    wheel.extractall(tmp_path / "lib")
    code = f"""
import importlib, sys
sys.path += {[str(tmp_path / "lib"), *site.getsitepackages()]!r}
from importlib.resources import files
for folder in {sorted(folders)!r}:
    module = importlib.import_module("foveate." + folder)
    print(module.__file__, files("foveate." + folder).joinpath("__init__.py").is_file())
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lib = tmp_path / "lib" / "foveate"
    assert done.stdout.splitlines() == [f"{lib / folder / '__init__.py'} True" for folder in sorted(folders)]

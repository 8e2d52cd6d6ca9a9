"""What every test runs under. Imports nothing heavy: one folder's tests must not load another's libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Set before any test imports torch or transformers; processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("PYTHONSAFEPATH", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "shared"))  # what tests of several folders use


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `gpu` where torch sees no CUDA device."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def tree() -> list[str]:
    """Every file of the checkout that git tracks or would track, as sorted paths relative to the top folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout: the files are compared with those that git lists")
    return sorted({path for path in listed.split("\0") if path and (ROOT / path).is_file()})

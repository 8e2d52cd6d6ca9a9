"""What every test runs under. Imports nothing heavy: collecting one folder's tests must not load another's libraries."""

import os

import pytest

# Set before any test imports torch or transformers; processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("PYTHONSAFEPATH", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `gpu` where torch sees no CUDA device."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")

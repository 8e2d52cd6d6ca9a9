"""What a measurement ran on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch


def machine() -> str:
    """The processor's name."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def in_words(versions: Mapping[str, str]) -> str:
    """Versions of libraries on one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def settle(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

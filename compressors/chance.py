"""Random numbers without a generator: the same on every device, for every row by itself."""

from __future__ import annotations

from torch import Tensor

# The multipliers of SplitMix64's finaliser and its increment, as signed 64-bit integers; products wrap.
FIRST, SECOND, STEP = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """A number in [0, 1) for each (seed, index), both int64 and broadcast together; float32 with 24 random bits."""
    mixed = _mix(_mix(seed) + STEP * index)
    return ((mixed >> 40) & 0xFFFFFF).float() * 2.0**-24


def _mix(h: Tensor) -> Tensor:
    h = (h ^ _shifted(h, 30)) * FIRST
    h = (h ^ _shifted(h, 27)) * SECOND
    return h ^ _shifted(h, 31)


def _shifted(h: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros; torch's own copies the sign."""
    return (h >> bits) & ((1 << (64 - bits)) - 1)

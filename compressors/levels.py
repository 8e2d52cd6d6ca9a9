"""States behind several blocks of the tower, which some projectors read beside the last one's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foveate.compressors.base import Tokens, scaled
from foveate.compressors.signals import Signal

Level = tuple[int, int]
"""(0-based block, blocks that run in the paper's tower)."""


def level_signals(levels: Sequence[Level], depth: int) -> frozenset[Signal]:
    """One request for each level, at the block of a tower of this depth that it stands for."""
    return frozenset(
        Signal("block_states", scaled(level, depth), f"level{number}") for number, level in enumerate(levels)
    )


def level_states(levels: Sequence[Level], tokens: Tokens) -> list[Tensor]:
    """What the host gave for them, (B, N, C) each, in the order of the levels."""
    return [tokens.signals[f"block_states.level{number}"] for number in range(len(levels))]

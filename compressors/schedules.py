"""How many tokens a method that acts in several blocks leaves in each. Plain Python."""

from __future__ import annotations

from collections.abc import Iterable


def evenly(n: int, count: int, blocks: int) -> list[int]:
    """Tokens after each of `blocks` blocks that remove equal numbers, the remainder in the first ones: n to `count`."""
    each, more = divmod(n - count, blocks)
    return [n - each * block - min(more, block) for block in range(1, blocks + 1)]


def falling(n: int, layers: Iterable[int], left: Iterable[int]) -> list[tuple[int, int]]:
    """(layer, tokens it leaves) for the layers that remove something, of n tokens."""
    found = []
    for layer, after in zip(layers, left, strict=True):
        if after < n:
            found.append((layer, after))
        n = after
    return found

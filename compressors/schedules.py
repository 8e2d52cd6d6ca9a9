"""How many tokens a method that acts in several blocks leaves in each. Plain Python."""

from __future__ import annotations

from collections.abc import Iterable


def evenly(n: int, count: int, blocks: int) -> list[int]:
    """Tokens after each of `blocks` blocks that remove equal numbers, the remainder in the first ones: n to `count`."""
    each, more = divmod(n - count, blocks)
    return [n - each * block - min(more, block) for block in range(1, blocks + 1)]


def geometric(n: int, count: int, blocks: int, share: float | None = None) -> list[int]:
    """Tokens after each of `blocks` blocks that keep the same share: parts of n, rounded down; the last leaves `count`.

    Args:
        n: tokens before the first.
        count: tokens after the last, and the fewest after any.
        blocks: how many.
        share: what each keeps; None = as it takes to reach `count`. A half: 576 -> 288, 144, 72.
    """
    share = (count / n) ** (1 / blocks) if share is None else share
    return [max(count, int(n * share**block + 1e-9)) for block in range(1, blocks)] + [count]


def falling(n: int, layers: Iterable[int], left: Iterable[int]) -> list[tuple[int, int]]:
    """(layer, tokens it leaves) for the layers that remove something, of n tokens."""
    found = []
    for layer, after in zip(layers, left, strict=True):
        if after < n:
            found.append((layer, after))
        n = after
    return found

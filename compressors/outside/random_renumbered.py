"""Random, numbered anew: the control of methods whose tokens do not keep their numbers in the sequence."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.outside.random import Random
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class RandomRenumbered(Random):
    """Keep the tokens that `random` keeps, and close the gaps between their positions.

    Paper:   none; a control.
    Code:    none.
    Formula: as of `random`; position ids of what is left are consecutive
    Shapes:  as of `random`
    Cost:    no matrix product.
    Differs: nothing known. What it has less than `random` is the price of new numbers alone.

    Raises:
        ValueError: `count` is outside 1..N.
    """

    name = "random_renumbered"
    stages = ("outside",)
    positions = "renumber"

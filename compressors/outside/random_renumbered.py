"""Random, numbered anew: the control of methods whose tokens do not keep their numbers in the sequence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens
from foveate.compressors.chance import uniform
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class RandomRenumbered(Selector):
    """Keep the tokens that `random` keeps, and close the gaps between their positions.

    Paper:   none; a control.
    Code:    none.
    Formula: s[n] = hash(seed, position[n]) / 2^24; position ids of what is left are consecutive
    Shapes:  seed (B,), position (B, N) -> s (B, N) float32
    Cost:    no matrix product.
    Differs: nothing known. What it has less than `random` is the price of new numbers alone.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N.
    """

    name = "random_renumbered"
    stages = ("outside",)
    positions = "renumber"
    paper = "none (control)"
    fidelity = "reference"

    def score(self, tokens: Tokens) -> Tensor:
        return uniform(tokens.seed.unsqueeze(1), tokens.position)

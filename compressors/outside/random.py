"""Random: keep tokens by lot, the control that a method which looks at the image has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Selector, Tokens
from foveate.compressors.chance import uniform
from foveate.compressors.controls import Control
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Random(Control, Selector):
    """Give each token a number that depends on the input's seed and on its place alone, and keep the largest.

    Paper:   none; the random control of the pruning literature.
    Code:    none.
    Formula: s[n] = hash(seed, position[n]) / 2^24
    Shapes:  seed (B,), position (B, N) -> s (B, N) float32
    Cost:    no matrix product.
    Differs: nothing known. Papers draw anew in each run; here the lot follows from the input: a run can be repeated.

    Args:
        layer: at `prefill`, tokens are gone before this layer, as (number, depth of the paper's model): FastV's place.
    Raises:
        ValueError: `count` is outside 1..N.
    """

    name = "random"

    def score(self, tokens: Tokens) -> Tensor:
        return uniform(tokens.seed.unsqueeze(1), tokens.position)

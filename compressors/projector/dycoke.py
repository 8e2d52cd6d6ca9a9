"""DyCoke, first stage: of every four frames the first stays whole, the others keep what differs most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import selection
from foveate.compressors.frames_apart import apart, frames_of, leading, paired, spread
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class DyCoke(Reducer):
    """In windows of four frames keep the first; the second and third are thinned against it, the fourth by the third.

    Paper:   Tao et al., CVPR 2025, https://arxiv.org/abs/2411.15024
    Code:    https://github.com/KD-TAO/DyCoke, llava/model/llava_arch.py
    Formula: frames a .. a + 3: a stays; a + 1 and a + 2 keep the m tokens with the smallest cosine to their place in a,
             a + 3 the m with the smallest to a + 2, which is taken whole; m = floor((1 - K) n), of the count:
             (count - whole frames) / thinned frames
    Shapes:  x (B, T n, D) -> anchor (B, K) int64
    Cost:    no matrix product: one inner product a token.
    Differs: the name says merging, paper and code drop. The code loses the last of an odd number of frames, keeps the
             third frame of the last window whole, fails on four frames or fewer and orders a frame by likeness; here
             every window follows the rule, a shorter last one too, and order stays raster. What does not divide by
             frames goes to the first of them.

    Args:
        window: frames of a window.
    Raises:
        ValueError: tokens are not a whole grid, `window` is below 2, or `count` is outside 1..N.
    """

    name = "dycoke"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    requires_grid = True
    paper = "Tao et al., CVPR 2025, https://arxiv.org/abs/2411.15024"
    fidelity = "paper"

    window: int = 4

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"dycoke: window {self.window} is below 2")

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, height, width = grid
        return range(-(-t // self.window) * height * width, t * height * width + 1)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        x, reference = frames_of(self.name, tokens), paired(tokens.grid[0], self.window)
        quota = spread(reference, x.shape[2], count)
        return selection(leading(apart(x, reference), quota).flatten(1))

"""EVS, Efficient Video Sampling: what has changed most since the frame before, ranked over the whole clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Grid, Selector, Tokens
from foveate.compressors.frames_apart import apart, frames_of, previous
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class EVS(Selector):
    """Keep the first frame and, of all others together, the tokens least like that of their place one frame before.

    Paper:   Bagrov et al., 2025, https://arxiv.org/abs/2510.14624
    Code:    vLLM, vllm/multimodal/evs.py; SGLang, python/sglang/srt/multimodal/evs
    Formula: d[t, p] = 1 - cos(e[t, p], e[t - 1, p]), d[0, p] = 255; the largest d stay, over all frames
    Shapes:  x (B, T H W, D) -> d (B, T H W) float32
    Cost:    no matrix product: one inner product a token.
    Differs: the engines fix a pruning rate for all requests; `retained` gives the count that a rate lays out in either,
             here any count from one frame on is met. The paper compares pixels of patches; the engines, and this, the
             projected tokens. Cosines are rounded to 2^-20, so that equal ones tie. Text goes on as the host counts it
             (vLLM: at the grid's width behind the video's first id).

    Args:
        positions: "keep" = as vLLM, which masks the ids of the grid; "renumber" = as SGLang, which prunes where ids do
            not depend on the grid, so that the tokens left are consecutive.
    Raises:
        ValueError: tokens are not a whole grid, `positions` is unknown, or `count` is outside 1..N.
    """

    name = "evs"
    stages = ("projector",)
    modality = "video"
    requires_grid = True
    paper = "Bagrov et al., 2025, https://arxiv.org/abs/2510.14624"
    fidelity = "reference"

    positions: str = "keep"

    def __post_init__(self) -> None:
        if self.positions not in ("keep", "renumber"):
            raise ValueError(f"evs: positions {self.positions!r} is neither 'keep' nor 'renumber'")

    def reachable(self, grid: Grid) -> Sequence[int]:
        t, height, width = grid
        return range(height * width, t * height * width + 1)

    def score(self, tokens: Tokens) -> Tensor:
        return apart(frames_of(self.name, tokens), previous(tokens.grid[0])).flatten(1)


def retained(grid: Grid, rate: float) -> int:
    """Tokens of a clip that vLLM and SGLang lay out for a pruning rate, before anything is encoded: one frame at least.

    The product is a float and is cut off: 100 frames of 10 at 0.9 leave 99.

    Raises:
        ValueError: `rate` is outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"evs: rate {rate} is outside [0, 1)")
    frames, each = grid[0], grid[1] * grid[2]
    return max(each, int(frames * each * (1 - rate)))


def laid_out(grid: Grid, rate: float) -> list[int]:
    """Placeholders of each frame before SGLang knows what stays: equal numbers, the remainder in the last frame.

    Raises:
        ValueError: `rate` is outside [0, 1).
    """
    total, frames = retained(grid, rate), grid[0]
    return [total // frames] * (frames - 1) + [total // frames + total % frames]

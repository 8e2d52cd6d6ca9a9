"""LLaVA-Scissor: connected components of alike tokens, in each frame and then across frames, become one token each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.chance import uniform
from foveate.compressors.grouping import Pairs, among, sample
from foveate.compressors.registry import register
from foveate.compressors.thresholds import highest


@register
@dataclass(frozen=True)
class LLaVAScissor(Reducer):
    """Means of each frame's semantic components, means of those across frames, and each token to the nearest of them.

    Paper:   Sun et al., 2025, https://arxiv.org/abs/2506.21862
    Code:    https://github.com/HumanMLLM/LLaVA-Scissor, llava/model/llava_arch_zip.py
    Formula: tokens with cos > tau are joined; R1 = means of the components of each frame, R2 = means of the components
             of all R1, by the same rule; slot = (R2 + sum of the tokens most like it) / (1 + their number), at the
             token with most joints of the component with most joints
    Shapes:  x (B, N, D) -> into, weight (B, N, 2)
    Cost:    2 B N^2 D FLOPs: all cosines, those of means too, follow from one product of the tokens with themselves.
    Differs: the code has tau = 0.9; here the count sets it: the highest tau that gives no more slots (one of sixteen
             may lack; searched for as if slots always rose with tau), and tokens least like their slot become slots of
             their own until the count is met. Components are exact, where the code joins a random sample of tokens to
             their neighbours (the same up to about 3240 tokens) and loses some. Frames are not pooled here.

    Args:
        threshold: tau; then the count is only a ceiling, under which tau falls where it must. None = the count is met.
        epsilon: ceil(ln n / epsilon^2) of n tokens, drawn by the seed, join with their neighbours, all others do not
            among themselves; 0.05 in the code. None = all do.
    Raises:
        ValueError: `epsilon` is not above 0, or `count` is outside 1..N.
    """

    name = "llava_scissor"
    stages = ("projector",)
    adaptive = True
    positions = "renumber"
    paper = "Sun et al., 2025, https://arxiv.org/abs/2506.21862"
    fidelity = "reference"

    threshold: float | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.epsilon <= 0:
            raise ValueError(f"llava_scissor: epsilon {self.epsilon} is not above 0")

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        x = tokens.x.float()
        products, frame = x @ x.mT, tokens.position // (tokens.grid[1] * tokens.grid[2])

        def sampled(allowed: Tensor, index: Tensor) -> Tensor:
            if self.epsilon is None:
                return allowed
            drawn = sample(uniform(tokens.seed.unsqueeze(-1), index), allowed, self.epsilon)
            return allowed & (drawn.unsqueeze(1) | drawn.unsqueeze(2))

        pairs = Pairs(products, among(products), frame.unsqueeze(1) == frame.unsqueeze(2), sampled)
        found = highest(pairs, 1.0 if self.threshold is None else self.threshold, count)
        if self.threshold is None:
            found = found.split(products, count)
        return found.refilled(products)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * n * n * dim

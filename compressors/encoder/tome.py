"""ToMe: in every ViT block, merge the pairs of tokens whose keys are most alike."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.matching import merge_down, merge_flops, needs_width
from foveate.compressors.registry import register
from foveate.compressors.schedules import evenly, falling
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class ToMe(Reducer):
    """Split the tokens of a block in two sets, match each of the first to its nearest in the second, merge the best.

    Paper:   Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461
    Code:    https://github.com/facebookresearch/ToMe, tome/merge.py and tome/patch/timm.py
    Formula: c[i] = max_j cos(k[i], k[j]) over even i and odd j; the r largest c merge: x = sum(s x) / sum(s),
             s = sum(s), s the number of tokens that each stands for
    Shapes:  keys (B, N, d), size (B, N) -> into, weight (B, N, 1)
    Cost:    2 B (N/2)^2 d FLOPs in each block that merges
    Differs: the host takes CLS out first, so patches are even or odd by their own index (in the code CLS is index 0
             and the two sets change roles). The n - count merges are spread evenly over the blocks, the remainder on
             the first ones, where the paper gives r for each block, the same or falling; what a block cannot halve
             away goes to earlier ones. A call for less than half merges in several rounds. A merged token takes the
             odd one's place.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N, or halving in every block of this depth cannot reach it.
        MissingSignal: the host gave no `keys`.
    """

    name = "tome"
    stages = ("encoder",)
    kinds = frozenset({"keys"})
    positions = "renumber"
    proportional = True
    paper = "Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461"
    fidelity = "reference"

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset(Signal("keys", layer) for layer in range(depth))

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        left = [n, *evenly(n, count, depth)]
        for block in reversed(range(depth)):
            left[block] = min(left[block], 2 * left[block + 1])
        if left[0] < n:
            least = -(-n // 2**depth)
            raise ValueError(
                f"{self.name}: count {count} is below {least}: {depth} blocks can at most halve {n} tokens each"
            )
        return falling(n, range(depth), left[1:])

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        return merge_down(tokens.signals["keys"], tokens.size, count)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        needs_width(self.name, key_dim)
        return merge_flops(n, count, key_dim)

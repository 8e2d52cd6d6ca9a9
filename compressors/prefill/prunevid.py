"""PruneVid, in the decoder: of each frame the tokens that some word behind the video looks at most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import rank_within, selection
from foveate.compressors.quotas import one_each
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class PruneVid(Reducer):
    """Behind one layer keep of every frame the same share, by the largest attention of any head and any later word.

    Paper:   Huang et al., ACL 2025, https://arxiv.org/abs/2412.16117
    Code:    https://github.com/Visual-AI/PruneVid (non-commercial licence; this is written from a description)
    Formula: s[n] = max over heads h and words t behind the video of attn[h, t, n] in layer M; of each frame with v
             tokens the a v with the largest s stay, a = count / N; the others leave this layer's cache and all before
    Shapes:  text_peak (B, N) -> anchor (B, K)
    Cost:    all words' query rows of one layer.
    Differs: there each scene's still tokens are a group of their own, which tokens do not tell any more in the decoder:
             here they compete with what else their scene's first frame has, at whose places they stand. a v is rounded
             so that the count is met, the largest remainders up, and a frame that has tokens keeps one while there are
             as many. Tokens without a place are one more frame.

    Args:
        layer: M, as (number, depth of the paper's model): (10, 32), and (5, 32) for long answers.
    Raises:
        ValueError: `layer` is outside 1 .. depth - 2, or `count` is outside 1..N.
        MissingSignal: the host gave no `text_peak`.
    """

    name = "prunevid"
    stages = ("prefill",)
    kinds = frozenset({"text_peak"})
    modality = "video"
    text_guided = True
    forgets = True
    paper = "Huang et al., ACL 2025, https://arxiv.org/abs/2412.16117"
    fidelity = "paper"

    layer: tuple[int, int] = (10, 32)

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1] - 1:
            raise ValueError(f"prunevid: layer {self.layer[0]} is outside 1..{self.layer[1] - 2}")

    def resolved(self, depth: int) -> int:
        """The layer whose attention is read, on a model of this depth; the next one must exist."""
        return min(scaled(self.layer, depth), depth - 2)

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("text_peak", self.resolved(depth))})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(self.resolved(depth) + 1, count)]

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        frame, number = frames(tokens), tokens.grid[0] + 1
        room = torch.zeros(len(frame), number, dtype=torch.long, device=frame.device)
        room.scatter_add_(1, frame, torch.ones_like(frame))
        budget = one_each(room / tokens.n, room, count)
        score = tokens.signals["text_peak"].float()
        return selection(rank_within(score, frame) < budget.gather(1, frame))


def frames(tokens: Tokens) -> Tensor:
    """(B, N) the frame that each token stands in; T where it has no place."""
    frame = tokens.position.div(tokens.grid[1] * tokens.grid[2], rounding_mode="floor")
    return torch.where(tokens.position < 0, tokens.grid[0], frame)

"""SAINT: tokens with many near twins vote themselves out of the blocks of the tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.matching import needs_width
from foveate.compressors.redundancy import Votes, thinned
from foveate.compressors.registry import register
from foveate.compressors.schedules import evenly, falling
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class Saint(Reducer):
    """Join even to odd tokens by likeness of keys, drop even ones with many joints; a full graph drops what remains.

    Paper:   Jeddi et al., 2025, https://arxiv.org/abs/2503.11549
    Code:    https://github.com/ArmenJeddi/saint, ViT/saint/prune.py and VLM/saint/prune.py
    Formula: S[i, j] = cos(k[i], k[j]), i even, j odd; joints S >= threshold, c[i] their number, m[i] their mean;
             as many go as have c >= degree, by falling c exp(gamma (m - threshold)), or mean_j S[i, j] where c is 0.
             Full graph: until `count` are left, the n // divisor largest sum_j S[i, j] over all n that are left go
    Shapes:  keys (B, N, d) -> anchor (B, K) int64
    Cost:    2 B N^2 d FLOPs in each block that prunes
    Differs: votes are a row's own, the code averages them over the batch. The published method has no count: here
             removals are spread over the blocks, a vote takes at most its block's share and the full graph the rest, so
             that the count is met; `clip` off lets votes take more. The code's full graph overwrites its divisor with
             the last number removed; here it stays. Order is kept, where the ViT code puts even tokens first.

    Args:
        threshold: cosine that joins two tokens: 0.75 in the script for ViTs. Higher keeps more.
        degree: joints from which a token may go: where there are fewer odd tokens, nobody goes by vote.
        gamma: weight of likeness against number of joints.
        form: "votes", or "full": the full graph alone, as the authors prune CLIP for a VLM in block 19 of 23.
        layers: first and last layer that prunes, 0-based, and how many run in the paper's model: the first half.
        divisor: one token of so many goes in a round of the full graph.
        clip: False: `count` is a ceiling that votes may go below.
    Raises:
        ValueError: `form` is unknown, `degree` or `divisor` is below 1, `layers` are not inside the model, or `count`
            is outside 1..N.
        MissingSignal: the host gave no `keys`.
    """

    name = "saint"
    stages = ("encoder",)
    kinds = frozenset({"keys"})
    adaptive = True
    positions = "renumber"
    paper = "Jeddi et al., 2025, https://arxiv.org/abs/2503.11549"
    fidelity = "reference"
    inside: ClassVar[int] = 1  # 0: tokens go before the layer that follows

    threshold: float = 0.75
    degree: int = 5
    gamma: float = 10.0
    form: str = "votes"
    layers: tuple[tuple[int, int], int] = ((0, 11), 23)
    divisor: int = 16
    clip: bool = True

    def __post_init__(self) -> None:
        if self.form not in ("votes", "full"):
            raise ValueError(f"saint: form {self.form!r} is neither 'votes' nor 'full'")
        if min(self.degree, self.divisor) < 1:
            raise ValueError(f"saint: degree {self.degree} or divisor {self.divisor} is below 1")
        (first, last), of = self.layers
        if not 0 <= first <= last < of:
            raise ValueError(f"saint: layers {first} to {last} do not ascend within 0..{of - 1}")

    def resolved(self, depth: int) -> list[int]:
        """The layers inside which, or before which, tokens go on a model of this depth."""
        (first, last), of = self.layers
        return [end - self.inside for end in range(scaled((first + 1, of), depth), scaled((last + 1, of), depth) + 1)]

    def signals(self, depth: int) -> frozenset[Signal]:
        (kind,) = self.kinds
        return frozenset(Signal(kind, layer) for layer in self.resolved(depth))

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        layers = self.resolved(depth)
        return falling(n, layers, evenly(n, count, len(layers)))

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        votes = Votes(self.threshold, self.degree, self.gamma) if self.form == "votes" else None
        (kind,) = self.kinds
        return thinned(tokens.signals[kind], count, votes, self.divisor, self.clip)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        needs_width(self.name, key_dim)
        return 2 * n * n * key_dim

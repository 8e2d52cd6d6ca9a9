"""A prefill method that does as a test says."""

from dataclasses import dataclass

import torch

from foveate.compressors.base import Reducer, Reduction


@dataclass(frozen=True)
class Picked(Reducer):
    """Keeps the tokens it is told, before the layers it is told."""

    name = "picked"
    stages = ("prefill",)
    kept: tuple[tuple[int, tuple[int, ...]], ...] = ()  # (layer, indices among what is left)
    policy: str = "keep"

    @property
    def positions(self):
        return self.policy

    def sites(self, n, count, depth):
        return [(layer, len(indices)) for layer, indices in self.kept]

    def plan(self, tokens, count):
        indices = dict(self.kept)[[layer for layer, _ in self.kept][tokens.site]]
        return Reduction(torch.tensor([indices] * tokens.x.shape[0]))

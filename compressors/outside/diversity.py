"""Diversity (DivPrune): keep a set of tokens whose nearest two are as far apart as greed can make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.matching import cosine
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Diversity(Reducer):
    """Start from the token whose nearest neighbour is farthest; add, one by one, the token farthest from those chosen.

    Paper:   Alvar et al. (DivPrune), CVPR 2025, https://arxiv.org/abs/2503.02175
    Code:    https://github.com/vbdi/divprune
    Formula: d[i, j] = 1 - cos(x[i], x[j]); first = argmax_i min_(j != i) d[i, j];
             next = argmax_i min_(j chosen) d[i, j]
    Shapes:  x (B, N, D) -> anchor (B, K) int64
    Cost:    2 B N^2 D FLOPs and K steps of N comparisons each
    Differs: the code measures distances on projected tokens; here on the encoder's output, since the projector has
             not run at this stage. A token is never chosen twice, as it can be in the code where all distances are 0.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N.
    """

    name = "diversity"
    stages = ("outside",)
    positions = "renumber"
    paper = "Alvar et al., CVPR 2025, https://arxiv.org/abs/2503.02175"
    fidelity = "reference"

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        distance = 1 - cosine(tokens.x, tokens.x)  # (B, N, N)
        apart = torch.eye(tokens.n, dtype=torch.bool, device=distance.device)
        pick = distance.masked_fill(apart, torch.inf).amin(dim=-1).argmax(dim=-1, keepdim=True)  # (B, 1)
        chosen = [pick]
        nearest = torch.full_like(distance[:, 0], torch.inf)  # (B, N) distance to the chosen ones
        row = torch.arange(distance.shape[0], device=distance.device).unsqueeze(-1) * tokens.n
        flat = distance.flatten(0, 1)
        for _ in range(count - 1):  # each step depends on the last: as few operations as it takes
            nearest = nearest.minimum(flat.index_select(0, (pick + row).view(-1))).scatter_(1, pick, -torch.inf)
            pick = nearest.argmax(dim=-1, keepdim=True)
            chosen.append(pick)
        return Reduction(torch.cat(chosen, dim=1).sort(dim=-1).values)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * n * n * dim

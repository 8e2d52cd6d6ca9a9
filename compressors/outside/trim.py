"""TRIM: rank tokens by their similarity to the question, keep the best, average the rest into one more token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import rank
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class Trim(Reducer):
    """Keep the tokens whose similarity to the question is lowest (sic), and the mean of all others as one token more.

    Paper:   Song et al., COLING 2025, https://arxiv.org/abs/2409.10994
    Code:    https://github.com/FreedomIntelligence/TRIM, llava/model/multimodal_encoder/clip_encoder.py
    Formula: p = softmax(sign * g), g[n] = similarity of token and question; the count - 1 largest p stay, the rest
             becomes its plain mean. `automatic`: those with p > Q3 + 1.5 (Q3 - Q1) stay, quartiles over the row
    Shapes:  text_similarity (B, N) -> anchor (B, K) with -1 for the mean, into, weight (B, N, 1)
    Cost:    no matrix product beside the signal's.
    Differs: the paper keeps similar tokens, the code dissimilar ones (its authors: found empirically): sign -1 is the
             code, +1 the paper. g is the paper's cosine, the code multiplies without normalising, so that its softmax
             has longer tails. Quartiles belong to a row; in the code a batch shares them. Where every token is asked
             for there is no mean token (the code fails there). A count of one is the mean token alone.

    Args:
        sign: -1 keeps tokens unlike the question, +1 like it; which is right depends on the model.
        automatic: the outliers among the p choose how many stay; `count` is then a ceiling.
    Raises:
        ValueError: `sign` is neither 1 nor -1, or `count` is outside 1..N.
        MissingSignal: the host gave no `text_similarity`.
    """

    name = "trim"
    stages = ("outside",)
    kinds = frozenset({"text_similarity"})
    text_guided = True
    adaptive = True
    positions = "renumber"
    paper = "Song et al., COLING 2025, https://arxiv.org/abs/2409.10994"
    fidelity = "reference"

    sign: int = -1
    automatic: bool = False

    def __post_init__(self) -> None:
        if self.sign not in (-1, 1):
            raise ValueError(f"trim: sign {self.sign} is neither 1 nor -1")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("text_similarity")})

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        score = self.sign * tokens.signals["text_similarity"].float()
        b, n = score.shape
        place = rank(score)
        kept = torch.full((b, 1), count - 1, device=score.device)
        if self.automatic:
            kept = kept.minimum(outliers(score.softmax(dim=-1)).unsqueeze(-1))
        elif count == n:
            return Reduction(torch.arange(n, device=score.device).expand(b, n))
        stays = place < kept
        slot = torch.where(stays, stays.cumsum(dim=-1) - 1, kept)  # the mean's slot comes after the last kept one
        anchor = torch.full((b, int(kept.max()) + 1), -1, device=score.device)
        index = torch.arange(n, device=score.device).expand(b, n)
        anchor.scatter_reduce_(1, slot, index.masked_fill(~stays, -1), "amax")
        weight = torch.where(stays, 1.0, 1.0 / (n - kept))
        count_used = kept.squeeze(-1) + 1 if self.automatic else None
        return Reduction(anchor, slot.unsqueeze(-1), weight.unsqueeze(-1), count_used)


def outliers(p: Tensor) -> Tensor:
    """How many entries of each row (B, N) lie above the upper quartile by more than 1.5 times the quartiles' range."""
    low, high = torch.quantile(p, 0.25, dim=-1), torch.quantile(p, 0.75, dim=-1)
    return (p > (high + 1.5 * (high - low)).unsqueeze(-1)).sum(dim=-1)

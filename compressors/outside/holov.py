"""HoloV: cut the picture in crops, give each a quota, and keep the best tokens of every crop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import rank, rows, selection
from foveate.compressors.matching import cosine
from foveate.compressors.quotas import capped
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class HoloV(Reducer):
    """Crops get places in proportion to their attention; within one, attention and varied relations decide.

    Paper:   Zou et al., NeurIPS 2025, https://arxiv.org/abs/2510.02912
    Code:    https://github.com/obananas/HoloV, llava/model/utils.py
    Formula: in a crop of M tokens S = cosines with a zero diagonal, m[i] = sum_j S[i, j] / (M - 1),
             V[i] = sum_j (S[i, j] - m[i])^2 / (M - 1), a = CLS attention, H = a + term * mean(a) / mean(V) * V; crops
             share the count by mean(H)^sharpness: whole parts, the rest to the heaviest, overflow to who has room
    Shapes:  cls_attention (B, H, N), x (B, N, D) -> anchor (B, K) int64
    Cost:    2 B N M D FLOPs for crops of M tokens
    Differs: tokens of a crop are chosen by H as in the paper; the code chooses by attention alone, so that V, whose
             mean equals attention's, has no effect at all: select "attention" with term 0.09 is the code. The code
             fills the overflow of a quota with zero tokens; here other crops get it. One scale for all crops, where the
             code has another one for those of a single token. Crops are runs of the raster sequence, as in the code.

    Args:
        crops: how many; None = floor(1024 / 576 * N / count), at least 1, as in the authors' Qwen version.
        term: weight of the relations in H: 1 in the paper, 0.09 in the code.
        sharpness: exponent of a crop's mean.
        select: "holistic" (H) or "attention".
    Raises:
        ValueError: `crops` is below 1, `select` is unknown, or `count` is outside 1..N.
        MissingSignal: the host gave no `cls_attention`.
    """

    name = "holov"
    stages = ("outside",)
    kinds = frozenset({"cls_attention"})
    positions = "renumber"
    paper = "Zou et al., NeurIPS 2025, https://arxiv.org/abs/2510.02912"
    fidelity = "paper"

    crops: int | None = None
    term: float = 1.0
    sharpness: float = 1.0
    select: str = "holistic"

    def __post_init__(self) -> None:
        if self.crops is not None and self.crops < 1:
            raise ValueError(f"holov: crops {self.crops} is below 1")
        if self.select not in ("holistic", "attention"):
            raise ValueError(f"holov: select {self.select!r} is neither 'holistic' nor 'attention'")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("cls_attention", FEATURE_LAYER)})

    def cut(self, n: int, count: int) -> tuple[int, int]:
        """Crops of n tokens and the size of the larger ones."""
        crops = min(n, max(1, 1024 * n // (576 * count)) if self.crops is None else self.crops)
        return crops, -(-n // crops)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        b, n, _ = tokens.x.shape
        crops, width = self.cut(n, count)
        index, real = runs(n, crops, width, tokens.x.device)
        attention = tokens.signals["cls_attention"].float().mean(dim=1)[:, index] * real  # (B, C, M)
        varied = relations(rows(tokens.x, index.flatten().expand(b, -1)).view(b, crops, width, -1), real)
        mean, spread = (part.sum(-1, keepdim=True) / real.sum(-1, keepdim=True) for part in (attention, varied))
        holistic = attention + self.term * (mean / spread).nan_to_num(0, 0, 0) * varied
        weight = mean.squeeze(-1) ** self.sharpness  # mean(H) is (1 + term) mean(a) in every crop
        quota = capped(weight, real.sum(-1).expand(b, -1), torch.full((b,), count, device=index.device), heaviest=True)
        score = holistic if self.select == "holistic" else attention
        kept = rank(score.masked_fill(~real, -torch.inf)) < quota.unsqueeze(-1)
        return selection(kept[:, real])

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        crops, width = self.cut(n, count)
        return 2 * crops * width * width * dim


def runs(n: int, crops: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token indices (C, M) of each crop, the first n mod C of them one longer, and which are real (C, M) bool."""
    crop = torch.arange(crops, device=device).unsqueeze(-1)
    short, longer = divmod(n, crops)
    place = torch.arange(width, device=device)
    real = place < short + (crop < longer).long()
    return (crop * short + crop.clamp(max=longer) + place).clamp(max=n - 1), real


def relations(x: Tensor, real: Tensor) -> Tensor:
    """V (B, C, M) of crops x (B, C, M, D): how much a token's cosines to the others vary; 0 for those not real."""
    pairs = real.unsqueeze(-1) & real.unsqueeze(-2)
    pairs &= ~torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
    likeness = cosine(x, x) * pairs
    others = (real.sum(-1) - 1).clamp(min=1).view(-1, 1)  # (C, 1)
    mean = likeness.sum(-1, keepdim=True) / others.unsqueeze(-1)
    return ((likeness - mean) ** 2 * real.unsqueeze(-2)).sum(-1) / others * real

"""VisionZip: keep the tokens that CLS attends to, merge the rest into a few contextual ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import ranked, rows
from foveate.compressors.matching import cosine, needs_width
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class VisionZip(Reducer):
    """Dominant tokens by CLS attention, CLS itself among them; of the rest, evenly spaced targets collect their like.

    Paper:   Yang et al., CVPR 2025, https://arxiv.org/abs/2412.04467
    Code:    https://github.com/dvlab-research/VisionZip, visionzip/clip_encoder.py
    Formula: a[n] = sum_h attn[h, CLS, n]; the largest a are dominant. Of the R others every floor(R / contextual)-th is
             a target t; each further one i joins argmax_t cos(k[i], k[t]); slot = x[t] + mean(x[i]) ("sum")
             or (x[t] + sum(x[i])) / (1 + members) ("mean")
    Shapes:  cls_attention (B, H, N), keys (B, N, d) -> into, weight (B, N, 1)
    Cost:    2 B (R - contextual) contextual d FLOPs beside the CLS row and the keys of one block
    Differs: contextual tokens take their target's place among the dominant ones, where the code appends them. The paper
             speaks of averages and the code does not divide: "sum" is the code, "mean" the paper. Published splits are
             written as counts; here a share of the count is dominant, at least one token.

    Args:
        merge: "sum" or "mean".
        dominant: share of the count that is dominant, CLS included: 54 of 64 in the paper's smallest setting.
    Raises:
        ValueError: `merge` is unknown, `dominant` is outside (0, 1], or `count` is outside 1..N.
        MissingSignal: the host gave no `cls_attention` or no `keys`.
    """

    name = "visionzip"
    stages = ("outside",)
    kinds = frozenset({"cls_attention", "keys"})
    positions = "renumber"
    takes_cls = True
    paper = "Yang et al., CVPR 2025, https://arxiv.org/abs/2412.04467"
    fidelity = "reference"

    merge: str = "sum"
    dominant: float = 54 / 64

    def __post_init__(self) -> None:
        if self.merge not in ("sum", "mean"):
            raise ValueError(f"visionzip: merge {self.merge!r} is neither 'sum' nor 'mean'")
        if not 0 < self.dominant <= 1:
            raise ValueError(f"visionzip: dominant {self.dominant} is outside (0, 1]")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("cls_attention", FEATURE_LAYER), Signal("keys", FEATURE_LAYER)})

    def split(self, count: int) -> tuple[int, int]:
        """Dominant and contextual tokens of a count."""
        dominant = max(1, round(self.dominant * count))
        return dominant, count - dominant

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        dominant, contextual = self.split(count)
        score = tokens.signals["cls_attention"].float().sum(dim=1).masked_fill(tokens.position < 0, torch.inf)
        order = ranked(score)
        kept, rest = order[:, :dominant].sort(dim=-1).values, order[:, dominant:].sort(dim=-1).values  # CLS is row 0
        if contextual == 0:
            return Reduction(kept)
        step = rest.shape[1] // contextual
        is_target = torch.zeros(rest.shape[1], dtype=torch.bool, device=rest.device)
        is_target[: step * contextual : step] = True
        targets, others = rest[:, is_target], rest[:, ~is_target]  # (B, contextual), (B, R - contextual)
        anchor = torch.cat([kept, targets], dim=1)
        keys = tokens.signals["keys"]
        joined = cosine(rows(keys, others), rows(keys, targets)).argmax(dim=-1)
        slot = torch.empty_like(order)
        slot.scatter_(1, anchor, torch.arange(count, device=order.device).expand_as(anchor))
        slot.scatter_(1, others, dominant + joined)
        return Reduction(anchor, slot.unsqueeze(-1), self._weight(slot, others, count).unsqueeze(-1))

    def _weight(self, slot: Tensor, others: Tensor, count: int) -> Tensor:
        """(B, N) what each token counts in its slot."""
        members = torch.zeros(slot.shape[0], count, device=slot.device)
        members.scatter_add_(1, slot, torch.ones_like(slot, dtype=torch.float32))  # anchor included
        members = members.gather(1, slot)
        if self.merge == "mean":
            return 1 / members
        return torch.ones_like(members).scatter(1, others, 1 / (members.gather(1, others) - 1))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        needs_width(self.name, key_dim)
        dominant, contextual = self.split(count)
        return 2 * (n - dominant - contextual) * contextual * key_dim

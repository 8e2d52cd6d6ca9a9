"""FiCoCo-V: block by block, drop redundant tokens and recycle each into the survivors it attends to most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import first_max, ranked, rows
from foveate.compressors.registry import register
from foveate.compressors.schedules import evenly, falling
from foveate.compressors.signals import Signal
from foveate.compressors.tokens import apply_flops


@register
@dataclass(frozen=True)
class FiCoCo(Reducer):
    """Filter by attention among patches against attention of CLS; correlate and compress by attention again.

    Paper:   Han et al., AAAI 2026, https://arxiv.org/abs/2411.17686
    Code:    https://github.com/kawhiiiileo/FiCoCo, llava/model/multimodal_encoder/FiCoCo_V.py
    Formula: v[i] = mean_(j != i) A[j, i], c[i] = CLS attention, r = share v / |v| - (1 - share) c / |c|; the most
             redundant token of each window counts double (half where r is negative); the largest r go. Each goes to the
             survivors j with A[i, j] at or above its own `quantile`: w[i, j] = A[i, j] / their sum,
             x[j] = (x[j] + sum_i w[i, j] x[i]) / (1 + sum_i w[i, j])
    Shapes:  attention_map (B, N, N), cls_attention (B, H, N) -> into, weight (B, N, J)
    Cost:    no matrix product beside the attention map of each block that compresses; 2 N count D where a token goes
             to more than 4 others.
    Differs: this is the paper. The code scores by logits averaged over the batch, loses CLS and the order of tokens
             after its first block, adds recycled tokens at rows of the old numbering and keeps its window penalty from
             one image to the next. Removals are spread evenly over the blocks, the remainder on the first ones (the
             code: 42 in each). Weights need no sizes: repeated merging counts every slot once, as in both.

    Args:
        share: weight of redundancy against CLS attention: 0.65.
        seen: "received", attention that others pay to a token, or "paid", what it pays to others.
        window: side of the windows in patches; a border that does not fill one has no penalty. 1 = none anywhere.
        quantile: of a token's attention on the survivors, above which it is shared out: 0.998 is the best one of up to
            500 survivors, the best two of up to 1000.
    Raises:
        ValueError: a hyperparameter is outside its range, or `count` is outside 1..N.
        MissingSignal: the host gave no `attention_map` or no `cls_attention`.
    """

    name = "ficoco"
    stages = ("encoder",)
    kinds = frozenset({"attention_map", "cls_attention"})
    positions = "renumber"
    paper = "Han et al., AAAI 2026, https://arxiv.org/abs/2411.17686"
    fidelity = "paper"

    share: float = 0.65
    seen: str = "received"
    window: int = 2
    quantile: float = 0.998

    def __post_init__(self) -> None:
        if self.seen not in ("received", "paid"):
            raise ValueError(f"ficoco: seen {self.seen!r} is neither 'received' nor 'paid'")
        if not (0 <= self.share <= 1 and 0 <= self.quantile <= 1):
            raise ValueError(f"ficoco: share {self.share} or quantile {self.quantile} is outside [0, 1]")
        if self.window < 1:
            raise ValueError(f"ficoco: window {self.window} is below 1")

    def signals(self, depth: int) -> frozenset[Signal]:
        blocks = range((depth + 1) // 2, depth)
        return frozenset(Signal(kind, block) for kind in self.kinds for block in blocks)

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        blocks = range((depth + 1) // 2, depth)
        return falling(n, blocks, evenly(n, count, len(blocks)))

    def redundancy(self, tokens: Tokens) -> Tensor:
        """(B, N) float32 before the windows' penalty, higher goes."""
        attention = tokens.signals["attention_map"].float()
        axis = 1 if self.seen == "received" else 2
        seen = attention.sum(dim=axis) - attention.diagonal(dim1=1, dim2=2)  # the mean's divisor cancels below
        by_cls = tokens.signals["cls_attention"].float().mean(dim=1)
        return self.share * normalize(seen, dim=-1) - (1 - self.share) * normalize(by_cls, dim=-1)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        redundancy = self.redundancy(tokens)
        if self.window > 1:
            redundancy = spread(redundancy, tokens.position, tokens.grid, self.window)
        order = ranked(-redundancy)
        kept, gone = order[:, :count].sort(dim=-1).values, order[:, count:]
        attention = rows(tokens.signals["attention_map"].float(), gone)
        attention = attention.gather(2, kept.unsqueeze(1).expand(-1, gone.shape[1], -1))  # (B, N - K, K)
        to = ranked(attention)[..., : self.best(count)]
        return recycled(kept, gone, to, attention.gather(2, to))

    def best(self, count: int) -> int:
        """So many of the survivors lie at or above the quantile."""
        return count - math.ceil(self.quantile * (count - 1) - 1e-9)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return apply_flops(n, count, self.best(count), dim)


def spread(redundancy: Tensor, position: Tensor, grid: Grid, window: int) -> Tensor:
    """Redundancy with the most redundant token of each window x window cells counting more; ties: the lower index."""
    b, n = redundancy.shape
    t, h, w = grid
    across, down = w // window, h // window
    frame, row, column = position // (h * w), position // w % h, position % w
    cell = (frame * down + row // window) * across + column // window
    nowhere = (position < 0) | (row >= down * window) | (column >= across * window)
    windows = t * down * across
    _, peak = first_max(redundancy, cell.masked_fill(nowhere, windows), windows + 1)
    is_peak = torch.zeros(b, n + 1, dtype=torch.bool, device=position.device)
    is_peak = is_peak.scatter_(1, peak[:, :windows], True)[:, :n]  # index n is for windows without a token
    more = torch.where(redundancy > 0, redundancy * 2, redundancy / 2)
    return torch.where(is_peak, more, redundancy)


def recycled(kept: Tensor, gone: Tensor, to: Tensor, attention: Tensor) -> Reduction:
    """Kept tokens, each averaged with its parts of the tokens that are gone.

    Args:
        kept: (B, K) indices, the slots in this order.
        gone: (B, R) indices.
        to: (B, R, J) the slots that each of the gone goes to.
        attention: (B, R, J) what it pays them.
    """
    b, count = kept.shape
    part = attention / attention.sum(-1, keepdim=True)
    part = torch.where(part.isfinite(), part, torch.full_like(part, 1 / to.shape[-1]))
    total = torch.ones(b, count, device=kept.device).scatter_add_(1, to.flatten(1), part.flatten(1))
    into = torch.full((b, count + gone.shape[1], max(1, to.shape[-1])), -1, device=kept.device)
    weight = torch.zeros(into.shape, device=kept.device)
    slots = torch.arange(count, device=kept.device).expand(b, -1)
    into[..., 0].scatter_(1, kept, slots)
    weight[..., 0].scatter_(1, kept, 1 / total)
    at = gone.unsqueeze(-1).expand_as(to)
    into.scatter_(1, at, to)
    weight.scatter_(1, at, part / total.gather(1, to.flatten(1)).view_as(part))
    return Reduction(kept, into, weight)

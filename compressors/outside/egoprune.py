"""EgoPrune: drop what a moving camera has already seen, then keep what is relevant and varied in every keyframe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens
from foveate.compressors.choosing import rows, selection
from foveate.compressors.homography import centres, corners, estimated, mapped, overlap
from foveate.compressors.matching import rounded
from foveate.compressors.quotas import capped
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal


@register
@dataclass(frozen=True)
class EgoPrune(Reducer):
    """Keyframes by overlap, redundancy along the camera's perspective map, then maximal marginal relevance by frame.

    Paper:   Li et al., 2025, https://arxiv.org/abs/2507.15428
    Code:    none found.
    Formula: M maps frame t into the last keyframe (RANSAC on mutual nearest tokens); t is a keyframe where the frames'
             intersection over union < `overlap`; token i goes where M p[i] is inside and cos(x[i], y) >= `repeated`, y
             the keyframe sampled at M p[i]; the survivors of a frame share the count and are picked by
             trade r[i] - (1 - trade) max_(j picked) cos(x[i], x[j]), r the similarity to the question from 0 to 1
    Shapes:  x (B, T H W, D), text_similarity (B, T H W) -> anchor (B, K) int64
    Cost:    2 B (2 T - 1) (H W)^2 D FLOPs: cosines within every frame, and of each with a keyframe; as many picks as
             the fullest frame has; maps of 3 x 3 apart
    Differs: the paper tells the parts and no number; all of them are this project's. It matches key points of pixels,
             here the tokens themselves are matched. Where no map is found, a frame is compared place by place if it is
             alike on the whole, and else kept. Frame 0 always keeps a token.

    Args:
        overlap: intersection over union below which a frame is a keyframe; None: every frame is one.
        gap: most frames from one keyframe to the next.
        matched: cosine above which mutual nearest neighbours are matches.
        repeated: cosine from which a token has been seen before.
        still: mean cosine of two frames above which they count as one view where no map is found.
        trade: relevance against variety, 0 to 1.
        sign: 1 prefers tokens like the question, -1 unlike it (see TRIM).
    Raises:
        ValueError: tokens are not a whole grid, `gap` is below 1, `trade` is outside [0, 1], `sign` is neither 1 nor
            -1, or `count` is outside 1..N.
        MissingSignal: the host gave no `text_similarity`.
    """

    name = "egoprune"
    stages = ("outside",)
    kinds = frozenset({"text_similarity"})
    text_guided = True
    adaptive = True
    requires_grid = True
    paper = "Li et al., 2025, https://arxiv.org/abs/2507.15428"
    fidelity = "reconstruction"

    overlap: float | None = 0.6
    gap: int = 8
    matched: float = 0.8
    repeated: float = 0.85
    still: float = 0.9
    trade: float = 0.5
    sign: int = 1

    def __post_init__(self) -> None:
        if self.gap < 1 or not 0 <= self.trade <= 1 or self.sign not in (-1, 1):
            raise ValueError(
                f"egoprune: gap {self.gap} must be at least 1, trade {self.trade} in [0, 1], sign {self.sign} 1 or -1"
            )

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("text_similarity")})

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        (t, h, w), (b, n, d) = tokens.grid, tokens.x.shape
        if n != t * h * w:
            raise ValueError(f"egoprune: {n} tokens are not a whole {t} x {h} x {w} grid")
        x = tokens.x.float().view(b, t, h * w, d)
        unit = normalize(x, dim=-1)
        alive = self.novel(x, unit, tokens.seed, h, w)
        quota = budgets(alive.sum(dim=-1), count)
        similar = (self.sign * tokens.signals["text_similarity"].float()).view(b, t, h * w)
        low, high = similar.amin(dim=-1, keepdim=True), similar.amax(dim=-1, keepdim=True)
        relevance = (similar - low) / (high - low).clamp(min=1e-6)
        return selection(varied(relevance, rounded(unit @ unit.mT), alive, quota, self.trade).flatten(1))

    def novel(self, x: Tensor, unit: Tensor, seed: Tensor, h: int, w: int) -> Tensor:
        """(B, T, HW) bool: tokens of keyframes that the keyframe before does not show.

        Args:
            x: (B, T, HW, D) tokens.
            unit: the same at unit length.
            seed: (B,) for the matching.
            h: rows of a frame.
            w: columns of a frame.
        """
        (b, t, n, _), device = x.shape, x.device
        alive = torch.ones(b, t, n, dtype=torch.bool, device=device)
        row, last = torch.arange(b, device=device), torch.zeros(b, dtype=torch.int64, device=device)
        for now in range(1, t):
            pairs = rounded(unit[:, now] @ unit[row, last].mT)  # (B, HW, HW)
            m, found = estimated(pairs, self.matched, h, w, seed + now)
            same_view = found | (pairs.diagonal(dim1=1, dim2=2).mean(dim=-1) > self.still)
            at = mapped(m, centres(h, w, device))
            before = normalize(sampled(x[row, last], at, h, w), dim=-1)
            seen = inside(at, h, w) & (rounded((unit[:, now] * before).sum(dim=-1)) >= self.repeated)
            key = ~found | (now - last >= self.gap)
            if self.overlap is None:
                key = torch.ones_like(key)
            else:
                quads = mapped(m, corners(h, w, device)).tolist()
                key |= torch.tensor([overlap(quad, h, w)[1] < self.overlap for quad in quads], device=device)
            alive[:, now] = key.unsqueeze(-1) & ~(seen & same_view.unsqueeze(-1))
            last = torch.where(key, now, last)
        return alive

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        return 2 * (2 * grid[0] - 1) * (n // grid[0]) ** 2 * dim


def inside(at: Tensor, h: int, w: int) -> Tensor:
    """(B, P) bool: points (B, P, 2) lie in a frame of h x w patches."""
    high = torch.tensor([w - 0.5, h - 0.5], dtype=at.dtype, device=at.device)
    return ((at >= -0.5) & (at <= high)).all(dim=-1)


def sampled(x: Tensor, at: Tensor, h: int, w: int) -> Tensor:
    """Tokens x (B, HW, D) of a frame at points (B, P, 2), linear in both directions, the border beyond the border."""
    limit = torch.tensor([w - 1, h - 1], dtype=at.dtype, device=at.device)
    at = at.clamp(min=0).minimum(limit)
    low = at.floor()
    high, part = (low + 1).minimum(limit).long(), (at - low).float()
    low = low.long()
    out = torch.zeros(at.shape[0], at.shape[1], x.shape[-1], device=x.device)
    for column, across in ((low[..., 0], 1 - part[..., 0]), (high[..., 0], part[..., 0])):
        for line, down in ((low[..., 1], 1 - part[..., 1]), (high[..., 1], part[..., 1])):
            out += (across * down).unsqueeze(-1) * rows(x, line * w + column).float()
    return out


def budgets(survivors: Tensor, count: int) -> Tensor:
    """(B, T) places of each frame in proportion to its survivors (B, T), at least one for frame 0."""
    total = survivors.sum(dim=-1).clamp(max=count)
    quota = capped(survivors.float(), survivors, total)
    lacks = (quota[:, :1] == 0).long()
    return quota.scatter_add(1, quota.argmax(dim=-1, keepdim=True), -lacks).scatter_add(
        1, torch.zeros_like(lacks), lacks
    )


def varied(relevance: Tensor, likeness: Tensor, alive: Tensor, quota: Tensor, trade: float) -> Tensor:
    """(B, T, n) bool: maximal marginal relevance, all frames at once.

    Args:
        relevance: (B, T, n).
        likeness: (B, T, n, n) cosines within each frame.
        alive: (B, T, n) bool, who may be picked.
        quota: (B, T) picks of each frame.
        trade: relevance against variety; the first pick is by relevance alone.
    """
    b, t, n = relevance.shape
    whole = quota >= alive.sum(dim=-1)  # all of these frames stay, whatever the order of picks
    kept, quota = alive & whole.unsqueeze(-1), quota.masked_fill(whole, 0)
    steps = int(quota.max())
    if not steps:
        return kept
    gain = (trade * relevance).masked_fill(~alive, -torch.inf).view(-1, n)  # frames of all rows, (B * T, n)
    loss = ((1 - trade) * likeness).reshape(-1, n)
    frame = torch.arange(b * t, device=gain.device).unsqueeze(-1) * n
    alike, picks = torch.zeros_like(gain), []
    for step in range(steps):  # each pick depends on the last: as few operations as it takes
        pick = (gain - alike).argmax(dim=-1, keepdim=True)
        row = loss.index_select(0, (pick + frame).view(-1))
        alike = row if step == 0 else alike.maximum(row)
        gain.scatter_(1, pick, -torch.inf)
        picks.append(pick)
    wanted = torch.arange(len(picks), device=gain.device) < quota.view(-1, 1)
    index = torch.cat(picks, dim=1).masked_fill(~wanted, n)  # place n: picks beyond a frame's quota
    picked = torch.zeros(b * t, n + 1, dtype=torch.bool, device=gain.device).scatter_(1, index, True)
    return kept | picked[:, :n].view(b, t, n)

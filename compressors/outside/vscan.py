"""VScan, first stage: tokens that stand out in their window and tokens that stand out in the picture, merged into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Reducer, Reduction, Tokens, scaled
from foveate.compressors.choosing import rank, rank_within, rows, selection
from foveate.compressors.matching import cosine
from foveate.compressors.registry import register
from foveate.compressors.signals import FEATURE_LAYER, Signal


@register
@dataclass(frozen=True)
class VScan(Reducer):
    """Half of the tokens by an early block's attention, evenly over windows; half by the last one's; the rest merges.

    Paper:   Zhang et al., TMLR 2026, https://arxiv.org/abs/2505.22654
    Code:    https://github.com/Tencent/SelfEvolvingAgent, VScan
    Formula: a = mean_h attn[h, CLS, n]; local: of each of W windows the floor(floor(K / 2) / W) largest a of an early
             block; global: of the others the largest a of the last block, up to K; a dropped i joins argmax_r
             cos(x[i], x[r]) over the kept; slot = (x[r] + sum x[i]) / (1 + members)
    Shapes:  cls_attention.local, cls_attention.global (B, H, N), x (B, N, D) -> into, weight (B, N, 1)
    Cost:    2 B K (N - K) D FLOPs beside the CLS rows of two blocks
    Differs: at `projector` it is the code, which merges what the projector has made of all tokens; at `outside` the
             merged ones alone are projected. The code's windows are fixed numbers, and where K / 2 is no multiple of
             theirs it keeps fewer than K (`fill` False); here the global half is then larger. On Qwen the code takes
             the attention received (so here, of every tower without CLS) and another rule for windows ("greedy").

    Args:
        local: the early block and the depth of the paper's tower: (5, 24); (7, 32) on Qwen2.5-VL.
        rule: "quota": four by four windows, equal numbers; "greedy": windows of four by four tokens, the best overall
            while their window holds less than ceil(floor(K / 2) / W).
        fill: the global half takes what the local one leaves of K.
    Raises:
        ValueError: `local` lies outside its tower, `rule` is unknown, or `count` is outside 1..N.
        MissingSignal: the host gave no `cls_attention`.
    """

    name = "vscan"
    stages = ("outside", "projector")
    kinds = frozenset({"cls_attention"})
    adaptive = True
    positions = "renumber"
    paper = "Zhang et al., TMLR 2026, https://arxiv.org/abs/2505.22654"
    fidelity = "reference"

    local: tuple[int, int] = (5, 24)
    rule: str = "quota"
    fill: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.local[0] < self.local[1]:
            raise ValueError(f"vscan: local {self.local[0]} is outside 0..{self.local[1] - 1}")
        if self.rule not in ("quota", "greedy"):
            raise ValueError(f"vscan: rule {self.rule!r} is neither 'quota' nor 'greedy'")

    def signals(self, depth: int) -> frozenset[Signal]:
        early = Signal("cls_attention", scaled(self.local, depth), "local")
        return frozenset({early, Signal("cls_attention", FEATURE_LAYER, "global")})

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        near, far = (tokens.signals[f"cls_attention.{tag}"].float().mean(dim=1) for tag in ("local", "global"))
        kept = self.locals(tokens, near, count // 2)
        more = count - (kept.sum(dim=-1, keepdim=True) if self.fill else count // 2)
        kept = kept | (rank(far.masked_fill(kept, -torch.inf)) < more)
        whole = selection(kept)
        return whole if bool(kept.all()) else merged(tokens.x, kept, whole)

    def locals(self, tokens: Tokens, score: Tensor, half: int) -> Tensor:
        """(B, N) bool, the tokens that stand out in their windows, about `half` of them."""
        window, windows = self.windows(tokens)
        inside = rank_within(score, window)
        if self.rule == "quota":
            return (inside < half // windows) & (window < windows)
        fits = (inside < -(-half // windows)) & (window < windows)
        return fits & (rank(score.masked_fill(~fits, -torch.inf)) < half)

    def windows(self, tokens: Tokens) -> tuple[Tensor, int]:
        """Each token's window (B, N), and how many there are; tokens without a place are in one of their own behind."""
        t, h, w = tokens.grid
        cut = [(max(1, axis // 4), min(4, axis)) if self.rule == "quota" else (4, max(1, axis // 4)) for axis in (h, w)]
        y, x = (
            ((tokens.position // step) % axis // size).clamp(max=number - 1)
            for (size, number), axis, step in zip(cut, (h, w), (w, 1), strict=True)
        )
        windows = t * cut[0][1] * cut[1][1]
        window = (tokens.position // (h * w) * cut[0][1] + y) * cut[1][1] + x
        return window.masked_fill(tokens.position < 0, windows), windows

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * count * (n - count) * dim


def merged(x: Tensor, kept: Tensor, whole: Reduction) -> Reduction:
    """A selection (B, N) into which each dropped token is averaged where it is most alike."""
    b, n = kept.shape
    anchor, lost = whole.anchor, selection(~kept).anchor
    likeness = cosine(rows(x, lost.clamp(min=0)), rows(x, anchor.clamp(min=0)))
    joined = likeness.masked_fill((anchor < 0).unsqueeze(1), -torch.inf).argmax(dim=-1)
    slot = torch.where(kept, kept.cumsum(dim=-1) - 1, -1)
    slot = torch.cat([slot, slot.new_full((b, 1), -1)], dim=1)  # place n: where what is no token writes
    slot = slot.scatter(1, lost.masked_fill(lost < 0, n), joined)[:, :n]
    members = torch.zeros(anchor.shape, device=x.device).scatter_add_(1, slot, torch.ones_like(slot, dtype=torch.float))
    weight = 1 / members.gather(1, slot)
    return Reduction(anchor, slot.unsqueeze(-1), weight.unsqueeze(-1), whole.count)

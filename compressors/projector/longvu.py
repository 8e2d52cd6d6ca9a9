"""LongVU: frames that repeat go, frames that the question is about stay sharp, still places are kept once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import marked, rank, selection
from foveate.compressors.frames_apart import apart, frames_of, leader
from foveate.compressors.matching import rounded
from foveate.compressors.planes import middles
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal
from foveate.compressors.tokens import inverse


@register
@dataclass(frozen=True)
class LongVU(Reducer):
    """Drop frames like the others of their window, shrink those that the question is not about, then drop still places.

    Paper:   Shen et al., ICML 2025, https://arxiv.org/abs/2410.17434
    Code:    https://github.com/Vision-CAIR/LongVU, longvu/cambrian_arch.py
    Formula: N tokens a frame, n when shrunk bilinearly, K the count. 1, where K / n frames or more: in windows of 16
             g[i] = mean_j cos(frame i, frame j), of the middle one 0; F frames with g < 0.83 stay. 2: F < [K / N] all
             whole; F > [K / n] all shrunk; else the [(K - F n) / (N - n)] most like the question are whole. 3, where
             all are shrunk: in chunks of 8 frames token p of t goes if cos(x[t, p], x[first, p]) >= theta; over K, the
             most alike go
    Shapes:  x (B, T N, D), features (B, T N, C), text_similarity (B, T N) -> into, weight (B, T N, 4)
    Cost:    no matrix product beside the signal's: inner products of frames with their window's mean, and of tokens.
    Differs: there frames are DINOv2's, for which 0.83 is set, here those of the host's tower. Likeness to the question
             is the text tower's cosine, mean over a frame; there the product of shrunk tokens with the words behind
             them. K is the count, without newlines, words and a reserve; sides shrink by 8 / 12 as there. The code
             never enters its branch that shrinks all frames, and over K it cuts the tails of chunks, anchors too: here
             the most alike go first, anchors last, by likeness to the chunk before. Its model was trained with this.

    Args:
        window: frames compared with each other.
        threshold: mean cosine from which a frame goes.
        most: frames that stay at most, evenly spread.
        low: rows and columns of a shrunk frame, of so many.
        chunk: frames compared with their first one.
        theta: cosine from which a token goes, 0.8 in training; None = the count alone decides.
    Raises:
        ValueError: `window`, `chunk` or `most` is below 1, `threshold` is not above 0, `low` is not a part, tokens are
            not a whole grid, or `count` is outside 1..N.
        MissingSignal: the host gave no `features` or no `text_similarity`.
    """

    name = "longvu"
    stages = ("projector",)
    kinds = frozenset({"features", "text_similarity"})
    modality = "video"
    text_guided = True
    adaptive = True
    positions = "renumber"
    requires_grid = True
    paper = "Shen et al., ICML 2025, https://arxiv.org/abs/2410.17434"
    fidelity = "reconstruction"

    window: int = 16
    threshold: float = 0.83
    most: int = 400
    low: tuple[int, int] = (8, 12)
    chunk: int = 8
    theta: float | None = 0.8

    def __post_init__(self) -> None:
        if min(self.window, self.chunk, self.most) < 1:
            raise ValueError(
                f"longvu: window {self.window}, chunk {self.chunk} and most {self.most} must be at least 1"
            )
        if self.threshold <= 0:
            raise ValueError(f"longvu: threshold {self.threshold} is not above 0")
        if not 1 <= self.low[0] <= self.low[1]:
            raise ValueError(f"longvu: low {self.low[0]} is outside 1..{self.low[1]}")

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("features"), Signal("text_similarity")})

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        x, (t, h, w) = frames_of(self.name, tokens), tokens.grid
        small, n = self.small(h, w), h * w
        n_low = small[0] * small[1]
        kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if t >= count // n_low:
            features = tokens.signals["features"].reshape(len(x), t, -1)
            kept = thinned(alike(features, self.window) < self.threshold, self.most)
        wanted = sharp(kept.sum(dim=-1, keepdim=True), count, n, n_low)
        asked = tokens.signals["text_similarity"].float().view(-1, t, n).mean(dim=-1)
        whole = kept & (rank(rounded(asked).masked_fill(~kept, -torch.inf)) < wanted)
        shrunk = (kept & ~whole).unsqueeze(-1).expand(-1, -1, n_low)
        over = kept.sum(dim=-1) * n_low > count
        if bool(over.any()):
            maps = x.float().flatten(0, 1).mT.unflatten(-1, (h, w))
            low = interpolate(maps, small, mode="bilinear", align_corners=False).flatten(2).mT
            moving = self.moving(low.unflatten(0, x.shape[:2]), kept, count)
            shrunk = shrunk & (moving | ~over.view(-1, 1, 1))
        return laid_out(whole.unsqueeze(-1).expand(-1, -1, n), shrunk, (h, w), small)

    def small(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a shrunk frame, to the nearest number."""
        part, of = self.low
        return tuple(max(1, (2 * side * part + of) // (2 * of)) for side in (height, width))

    def moving(self, x: Tensor, kept: Tensor, count: int) -> Tensor:
        """(B, T, n) bool, the tokens that stay of x (B, T, n, D) in kept frames (B, T): at most so many."""
        order = (~kept).long().argsort(dim=-1, stable=True)  # kept frames first
        number = inverse(order)
        first = leader(x.shape[1], self.chunk).to(x.device)[number]
        distance = apart(x, order.gather(1, first))
        anchor = (number == first).unsqueeze(-1)
        before = apart(x, order.gather(1, (first - self.chunk).clamp(min=0)))
        distance = torch.where(anchor, distance + before, distance).masked_fill(~kept.unsqueeze(-1), -torch.inf)
        stays = (rank(distance.flatten(1)) < count).view_as(distance) & kept.unsqueeze(-1)
        return stays if self.theta is None else stays & (distance > 1 - self.theta)


def alike(features: Tensor, window: int) -> Tensor:
    """(B, T) mean cosine of each frame (B, T, F) with those of its window, itself among them; 0 of the middle one."""
    found = []
    for part in normalize(features.float(), dim=-1).split(window, dim=1):
        like = rounded((part * part.mean(dim=1, keepdim=True)).sum(dim=-1))
        like[:, part.shape[1] // 2] = 0
        found.append(like)
    return torch.cat(found, dim=1)


def thinned(kept: Tensor, most: int) -> Tensor:
    """(B, T) bool, of more than so many frames as many at even distances, the first and the last among them."""
    number = kept.sum(dim=-1, keepdim=True)
    even = torch.arange(most, device=kept.device) * (number - 1) // max(1, most - 1)
    place = (kept.cumsum(dim=-1) - 1).clamp(min=0)
    chosen = marked(kept, even).gather(1, place)
    return kept & (chosen | (number <= most))


def sharp(frames: Tensor, budget: int, high: int, low: int) -> Tensor:
    """How many of the frames that are left (any shape, int64) stay whole, with `high` tokens instead of `low`."""
    mixed = ((budget - frames * low) // max(1, high - low)).clamp(min=0).minimum(frames)
    mixed = torch.where(frames > budget // low, 0, mixed)
    return torch.where(frames < budget // high, frames, mixed)


def laid_out(whole: Tensor, shrunk: Tensor, size: tuple[int, int], small: tuple[int, int]) -> Reduction:
    """Tokens that stay whole (B, T, N) bool and tokens of shrunk frames (B, T, n) bool as one reduction.

    Args:
        whole: of tokens as they are.
        shrunk: of the bilinear means of up to four of them.
        size: rows and columns of a frame.
        small: of a shrunk one.
    """
    (b, t, n), device = whole.shape, whole.device
    cell, weight, middle = (part.to(device) for part in blend(size, small))
    used = torch.cat([whole, shrunk], dim=-1).flatten(1)  # (B, T (N + n)) slots that there could be
    slot = (used.cumsum(dim=-1) - 1).masked_fill(~used, -1).view(b, t, -1)
    place = torch.cat([torch.arange(n, device=device), middle])
    place = (torch.arange(t, device=device).unsqueeze(-1) * n + place).flatten()
    chosen = selection(used)
    anchor = place[chosen.anchor.clamp(min=0)].masked_fill(chosen.anchor < 0, -1)
    lower = slot[..., n + cell.flatten()].unflatten(-1, cell.shape)  # (B, T, N, 4)
    lower = lower.masked_fill(weight == 0, -1)
    itself = torch.full_like(lower, -1)
    itself[..., 0] = slot[..., :n]
    into = torch.where(whole.unsqueeze(-1), itself, lower)
    weight = torch.where(whole.unsqueeze(-1), 1.0, weight).masked_fill(into < 0, 0)
    return Reduction(anchor, into.flatten(1, 2), weight.flatten(1, 2), chosen.count)


def blend(size: tuple[int, int], small: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear shrinking: of each token the cells (N, 4) that it goes to and its weights there; each cell's middle."""
    cells, weights, centres = [], [], []
    for side, less in zip(size, small, strict=True):
        weight = interpolate(torch.eye(side).unsqueeze(0), less, mode="linear", align_corners=False)[0]  # (side, less)
        weight, cell = (torch.cat([part, torch.zeros_like(part)], dim=-1)[:, :2] for part in weight.topk(min(2, less)))
        cells.append(cell)
        weights.append(weight)
        centres.append(middles(less, side, torch.device("cpu")))
    cell = cells[0][:, None, :, None] * small[1] + cells[1][None, :, None, :]
    weight = weights[0][:, None, :, None] * weights[1][None, :, None, :]
    middle = centres[0].unsqueeze(-1) * size[1] + centres[1]
    return cell.reshape(-1, 4), weight.reshape(-1, 4), middle.flatten()

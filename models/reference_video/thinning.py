"""Videos with tokens left out, as the decoder of the video model learns to read them.

A model that has only ever seen whole frames takes a thing whose tokens are missing for one that is gone. Models in the
field are more robust, and some are trained so: TimeChat-Online behind its own dropping (arXiv 2504.17343). Here most of
the training's videos lose tokens, in one of three ways, and keep the positions of the rest.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from foveate.models.reference.architecture import PATCH
from foveate.models.reference.batches import Batch

SHARE = 0.6  # of the steps with videos
MOST = 0.8  # keep ratio; its logarithm is drawn evenly from the least's on
FRAME, LOT = 1.15, 0.4  # the least: so many whole frames, or this share where lots are drawn
WAYS = ("still", "still in each frame", "lot")
"""What is least different from its place a frame before goes, over all frames or the same number in each, the first
frame staying whole; or lots are drawn."""


def thinned(batch: Batch, seed: int, step: int) -> Batch:
    """The batch of a step, of videos with a part of their tokens in some steps. What is drawn follows from seed and
    step."""
    rng = random.Random(f"{seed}/thin/{step}")
    if batch.pixels.ndim < 5 or batch.pixels.shape[1] < 2 or rng.random() >= SHARE:
        return batch
    way = rng.choice(WAYS)
    least = LOT if way == "lot" else FRAME / batch.pixels.shape[1]
    keep = least * (MOST / least) ** rng.random()
    return batch.shown(kept(batch.pixels, way, keep, rng.getrandbits(32)))


def kept(pixels: Tensor, way: str, keep: float, seed: int) -> Tensor:
    """Patches of videos that stay.

    Args:
        pixels: (B, T, 3, H, W).
        way: one of `WAYS`.
        keep: share of the patches; where the first frame stays whole, at least that.
        seed: of the lots, which also decide between what differs equally.
    Returns:
        (B, K) int64, ascending.
    """
    changed = changes(pixels)  # (B, T, n)
    frames, patches = changed.shape[1:]
    lots = torch.rand(changed.shape, generator=torch.Generator().manual_seed(seed))
    if way == "lot":
        return top(lots.flatten(1), round(keep * frames * patches))
    score = changed + 1e-3 * lots.to(changed)
    later = max(1, round(keep * frames * patches) - patches)
    if way == "still":
        return top(torch.cat([score[:, :1] + 1e3, score[:, 1:]], dim=1).flatten(1), patches + later)
    each = max(1, later // (frames - 1))
    behind = score[:, 1:].topk(each, dim=-1).indices + patches * torch.arange(1, frames).view(-1, 1)
    whole = torch.arange(patches).expand(len(pixels), -1)
    return torch.cat([whole, behind.flatten(1).sort(dim=-1).values], dim=1)


def changes(pixels: Tensor) -> Tensor:
    """(B, T, h w): mean absolute difference of each patch from the frame before; 0 in the first."""
    difference = (pixels[:, 1:] - pixels[:, :-1]).abs().mean(2)  # (B, T - 1, H, W)
    cells = difference.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).mean((3, 5)).flatten(2)
    return torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1)


def top(score: Tensor, count: int) -> Tensor:
    """(B, count) ascending indices of the largest."""
    return score.topk(count, dim=-1).indices.sort(dim=-1).values

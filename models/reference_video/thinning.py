"""Videos with tokens left out, as the decoder of the video model learns to read them.

A model that has only ever seen whole frames takes a thing whose tokens are missing for one that is gone. Models in the
field are more robust, and some are trained so: TimeChat-Online behind its own dropping (arXiv 2504.17343), Nemotron
behind EVS at drawn rates (arXiv 2510.14624). Here most of the training's videos lose tokens, in one of four ways, and
keep the positions of the rest.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from foveate.compressors.frames_apart import apart, previous
from foveate.models.reference.architecture import PATCH
from foveate.models.reference.batches import Batch
from foveate.models.reference.objectives import seen

SHARE = 0.75  # of the steps with videos
MOST = 0.8  # keep ratio; its logarithm is drawn evenly from the least's on
FRAME, LOT = 1.15, 0.4  # the least: so many whole frames, or this share where lots are drawn
WAYS = {"still": 2, "alike": 4, "still in each frame": 1, "lot": 2}
"""How often each way comes. What differs least from its place a frame before goes, over all frames by pixels, or by
the cosine of the projected tokens, or by pixels the same number in each frame, the first frame staying whole; or lots
are drawn."""


def thinned(batch: Batch, model: LlavaForConditionalGeneration, seed: int, step: int) -> Batch:
    """The batch of a step, of videos with a part of their tokens in some steps. What is drawn follows from seed and
    step; `model` projects the tokens where they are to be alike."""
    rng = random.Random(f"{seed}/thin/{step}")
    if batch.pixels.ndim < 5 or batch.pixels.shape[1] < 2 or rng.random() >= SHARE:
        return batch
    way = rng.choices(list(WAYS), list(WAYS.values()))[0]
    least = LOT if way == "lot" else FRAME / batch.pixels.shape[1]
    keep = least * (MOST / least) ** rng.random()
    changed = unlike(model, batch.pixels) if way == "alike" else changes(batch.pixels)
    return batch.shown(kept(changed, way, keep, rng.getrandbits(32)))


def kept(changed: Tensor, way: str, keep: float, seed: int) -> Tensor:
    """Tokens of videos that stay.

    Args:
        changed: (B, T, n), how far each differs from its place a frame before.
        way: one of `WAYS`.
        keep: share of the tokens; where the first frame stays whole, at least that.
        seed: of the lots, which also decide between what differs equally.
    Returns:
        (B, K) int64, ascending.
    """
    frames, patches = changed.shape[1:]
    lots = torch.rand(changed.shape, generator=torch.Generator().manual_seed(seed)).to(changed)
    if way == "lot":
        return top(lots.flatten(1), round(keep * frames * patches))
    score = changed + 1e-3 * lots
    later = max(1, round(keep * frames * patches) - patches)
    if way != "still in each frame":
        return top(torch.cat([score[:, :1] + 1e3, score[:, 1:]], dim=1).flatten(1), patches + later)
    each = max(1, later // (frames - 1))
    starts = patches * torch.arange(1, frames, device=changed.device).view(-1, 1)
    behind = score[:, 1:].topk(each, dim=-1).indices + starts
    whole = torch.arange(patches, device=changed.device).expand(len(changed), -1)
    return torch.cat([whole, behind.flatten(1).sort(dim=-1).values], dim=1)


@torch.no_grad()
def unlike(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """(B, T, h w): 1 - cosine of each projected token to that of its place in the frame before."""
    tokens = model.model.multi_modal_projector(seen(model, pixels)[0]).unflatten(1, (pixels.shape[1], -1))
    return apart(tokens, previous(pixels.shape[1]))


def changes(pixels: Tensor) -> Tensor:
    """(B, T, h w): mean absolute difference of each patch from the frame before; 0 in the first."""
    difference = (pixels[:, 1:] - pixels[:, :-1]).abs().mean(2)  # (B, T - 1, H, W)
    cells = difference.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).mean((3, 5)).flatten(2)
    return torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1)


def top(score: Tensor, count: int) -> Tensor:
    """(B, count) ascending indices of the largest."""
    return score.topk(count, dim=-1).indices.sort(dim=-1).values

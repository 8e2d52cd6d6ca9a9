"""How far each token of a clip is from the token of its place in another frame. Knows tensors only.

EVS, TimeChat-Online's DTD, DyCoke and LongVU's token stage measure the same; they differ in the frame they compare
with.
A reference is (T,) int64, for each frame the one that it is compared with, or (B, T) where rows differ; a frame that is
its own stays whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.compressors.choosing import rank
from foveate.compressors.matching import cosine_to
from foveate.compressors.planes import check_whole
from foveate.compressors.tokens import Tokens

WHOLE = 255.0
"""How far tokens of a frame that is its own reference are from it: farther than any cosine tells."""


def frames_of(name: str, tokens: Tokens) -> Tensor:
    """(B, T, n, D) tokens frame by frame. Raises: ValueError where they are not a whole grid."""
    check_whole(name, tokens)
    t, height, width = tokens.grid
    return tokens.x.view(-1, t, height * width, tokens.x.shape[-1])


def previous(frames: int) -> Tensor:
    """Each frame's reference is the one before."""
    return (torch.arange(frames) - 1).clamp(min=0)


def leader(frames: int, chunk: int) -> Tensor:
    """The first frame of each chunk of so many."""
    return torch.arange(frames) // chunk * chunk


def paired(frames: int, window: int) -> Tensor:
    """Even frames of a window: its first; odd ones: the frame before."""
    index, first = torch.arange(frames), leader(frames, window)
    return torch.where((index - first) % 2 == 1, index - 1, first)


def apart(x: Tensor, reference: Tensor) -> Tensor:
    """1 - cosine of each token of x (B, T, n, D) with that of its place in the reference frame: (B, T, n) float32.

    `WHOLE` in frames that are their own reference.
    """
    reference = reference.to(x.device).expand(x.shape[:2])
    own = reference == torch.arange(x.shape[1], device=x.device)
    other = x[torch.arange(len(x), device=x.device).unsqueeze(-1), reference]
    distance = 1 - cosine_to(x.flatten(0, 1), other.flatten(0, 1)).view(x.shape[:3])
    return distance.masked_fill(own.unsqueeze(-1), WHOLE)


def leading(distance: Tensor, quota: Tensor) -> Tensor:
    """(B, T, n) bool: the `quota` (T,) tokens of each frame that are farthest; equal ones by rising index."""
    return rank(distance) < quota.to(distance.device).view(1, -1, 1)


def spread(reference: Tensor, each: int, count: int) -> Tensor:
    """(T,) int64 tokens of each frame: whole where it is its own reference, what is left of `count` evenly over others.

    What does not divide goes to the first of them. With less than the whole frames need, these share it alike.

    Args:
        reference: of each frame.
        each: tokens of a frame.
        count: tokens of the clip.
    """
    whole = reference == torch.arange(len(reference))
    many, rest = int(whole.sum()), count - int(whole.sum()) * each
    if rest < 0:
        return _even(whole, many, count)
    return whole * each + _even(~whole, len(whole) - many, rest)


def _even(which: Tensor, many: int, total: int) -> Tensor:
    low, more = divmod(total, max(many, 1))
    return which * (low + (which.cumsum(0) <= more))

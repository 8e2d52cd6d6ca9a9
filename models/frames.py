"""What a frame is as a whole, and which frame each visual token of the decoder shows; a picture is one frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.visual import VisualState

FRAME_KINDS = ("frame_vectors", "frame_similarity")


def frame_means(states: Sequence[VisualState]) -> Tensor:
    """Mean (F, d) float32 over the tokens of each frame of all views; a token counts for as many as it stands for."""
    return torch.cat([_means(state) for state in states])


def _means(state: VisualState) -> Tensor:
    frames, height, width = state.grid
    frame = (state.position // (height * width)).clamp(min=0)
    weight = torch.zeros(frames, len(frame), device=frame.device).scatter_(0, frame[None], state.size[None])
    total = weight.sum(1, keepdim=True)
    spread = (weight / total.clamp(min=1e-6))[..., None]
    return (spread * state.x.float()).sum(1)  # no matrix product: nothing that a ledger would have to count


def frame_numbers(before: Sequence[Grid], now: Sequence[Grid]) -> Tensor:
    """The frame, among those of all views, of each place in the grid of all views together.

    Args:
        before: grid of each view when the frames were counted.
        now: the same behind the projector, where a view may have fewer frames.
    """
    first, parts = 0, []
    for (frames, *_), (t, h, w) in zip(before, now, strict=True):
        parts.append((first + torch.arange(t) * frames // t).repeat_interleave(h * w))
        first += frames
    return torch.cat(parts)

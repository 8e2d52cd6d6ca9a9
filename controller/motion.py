"""Features of a video: those of the frame in its middle, and a few of how it changes; known before anything has run.

Time features, each in [0, 1] (of the frames that are shown, read with a stride that leaves at most 128 px a side;
luminance y in [0, 1]; patches of 8 x 8 px; a video of one frame has zeros but for its length):

| name | meaning |
|---|---|
| motion_mean, motion_spread | mean absolute step of y between neighbouring frames: mean and twice the deviation |
| still_share | share of patches, over all pairs, in which y steps by less than 0.01 on average |
| cuts | log2(1 + n) / 6, n = pairs whose histograms of 4 levels a channel have less than half in common |
| log_frames | log2 of the number of frames, / 10 |

A picture has no time features; where a controller reads them they are 0 for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.controller.features import CELL, MAX_SIDE, PIXEL_FEATURES, pixel_features

TIME_FEATURES: tuple[str, ...] = ("motion_mean", "motion_spread", "still_share", "cuts", "log_frames")

STILL = 0.01
"""Mean step of luminance below which nothing happens in a patch: two or three of 255 levels."""

IN_COMMON = 0.5
"""Share of two neighbouring histograms below which there is a cut between them."""

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32) / np.float32(255)


def time_features(frames: np.ndarray) -> np.ndarray:
    """How a video changes, in the order of `TIME_FEATURES`.

    Args:
        frames: (T, H, W, 3) uint8, at least one frame of at least 1 x 1 px.

    Returns:
        (5,) float32 in [0, 1].

    Raises:
        ValueError: not a uint8 array of that shape.
    """
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        kind = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"video: expected a uint8 array (T, H, W, 3), got {kind}")
    if 0 in frames.shape:
        raise ValueError(f"video: no pixels, shape {frames.shape}")
    length = math.log2(len(frames)) / 10
    if len(frames) == 1:
        return np.asarray([0.0, 0.0, 0.0, 0.0, length], np.float32)
    step = -(-max(frames.shape[1:3]) // MAX_SIDE)
    some = np.ascontiguousarray(frames[:, ::step, ::step])
    moved = np.abs(np.diff(some.astype(np.float32) @ _LUMA, axis=0))
    pace = moved.mean(axis=(1, 2))
    means = patches(moved)
    still = np.count_nonzero(means < STILL) / means.size
    cuts = math.log2(1 + np.count_nonzero(_in_common(some) < IN_COMMON)) / 6
    return np.clip(np.asarray([pace.mean(), 2 * pace.std(), still, cuts, length], np.float32), 0.0, 1.0)


def shown_features(shown: Any) -> np.ndarray:
    """Features of what one row shows.

    Args:
        shown: a picture (H, W, 3) uint8; a video (T, H, W, 3) uint8, or a clip that has it as `frames`; or a sequence
            of them.

    Returns:
        (24,) float32: `PIXEL_FEATURES`, of a video those of its middle frame, of several the mean. Where a video is
        shown (29,): `TIME_FEATURES` behind them, of several videos the mean.

    Raises:
        ValueError: see `pixel_features` and `time_features`.
    """
    each = [_array(one) for one in (shown if isinstance(shown, Sequence) else [shown])]
    films = [one for one in each if one.ndim == 4]
    still = [pixel_features(one[len(one) // 2] if one.ndim == 4 else one) for one in each]
    pixels = still[0] if len(still) == 1 else np.mean(still, axis=0)
    return np.concatenate([pixels, np.mean([time_features(film) for film in films], axis=0)]) if films else pixels


def as_wide(shown: np.ndarray, width: int) -> np.ndarray:
    """`shown_features` (d,) in so many places, where they are fewer: a picture's time features are 0."""
    return np.pad(shown, (0, width - len(shown))) if len(shown) == len(PIXEL_FEATURES) < width else shown


def _array(one: Any) -> Any:
    """A picture's or a video's pixels; what is neither is refused by who reads it."""
    pixels = getattr(one, "frames", one)
    return pixels if isinstance(pixels, np.ndarray) else np.asarray(pixels)


def patches(values: np.ndarray) -> np.ndarray:
    """Means of (n, h, w) over 8 x 8 patches, those at the right and lower edge smaller."""
    for axis in (1, 2):
        starts = np.arange(0, values.shape[axis], CELL)
        sizes = np.diff(np.append(starts, values.shape[axis])).astype(np.float32)
        values = np.add.reduceat(values, starts, axis=axis) / (sizes[:, None] if axis == 1 else sizes)
    return values


def _in_common(frames: np.ndarray) -> np.ndarray:
    """(T - 1,) what the histograms of neighbouring frames share: 1 = all."""
    t, *_ = frames.shape
    code = (frames >> 6).reshape(t, -1, 3).astype(np.intp) @ np.asarray([16, 4, 1])
    bins = np.bincount((code + 64 * np.arange(t)[:, None]).ravel(), minlength=64 * t).reshape(t, 64) / code.shape[1]
    return np.minimum(bins[1:], bins[:-1]).sum(axis=1)

"""Some frames of a video, with the times at which they are shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from foveate.tasks.base import TaskDataError

FPS = 24.0
"""Frames a second of a video that does not say: as transformers has it."""

FRAMES = 8
"""Frames of a file that are shown where nobody says how many."""


class VideoError(TaskDataError):
    """A video that cannot be used: one line with the reason, and its path where it is a file."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Some frames of a video.

    Attributes:
        frames: (T, H, W, 3) uint8, RGB, turned as the file says.
        seconds: (T,) float64, when each is shown, ascending; the video's first frame is at 0.
        duration: of the whole video, in seconds.
        total: frames of the whole video.
    """

    frames: np.ndarray
    seconds: np.ndarray
    duration: float
    total: int

    @classmethod
    def of(cls, frames: np.ndarray, fps: float = FPS) -> Self:
        """A clip that is all of a video, with so many frames a second. Raises: VideoError, ValueError on a bad rate."""
        if not 0 < fps < np.inf:
            raise ValueError(f"video: fps = {fps} must be positive")
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise VideoError(f"video: needs a uint8 array (T, H, W, 3), got {frames.dtype} {frames.shape}")
        return cls(frames, np.arange(len(frames)) / fps, len(frames) / fps, len(frames))

    def at(self, which: np.ndarray) -> Self:
        """Some of the frames, ascending; the video stays as long as it is."""
        return replace(self, frames=self.frames[which], seconds=self.seconds[which])

    @property
    def middle(self) -> np.ndarray:
        """(H, W, 3) uint8: the frame in the middle, for who looks at one."""
        return self.frames[len(self.frames) // 2]


def middles(n: int, total: int) -> np.ndarray:
    """min(n, total) of `total` indices at even distances, ascending: the middles of n equal parts."""
    n = min(n, total)
    return (2 * np.arange(n) + 1) * total // (2 * n)

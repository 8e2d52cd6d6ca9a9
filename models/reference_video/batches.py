"""Training batches of the video model: steps of videos, of long ones and of pictures, in a fixed random order.

A picture is a video of one frame. All samples of a batch have the same number of frames; a batch holds about as many
frames whatever it is made of.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from foveate.models.reference.batches import Batch, Drawn, drawn, normalised, patch_labels, stacked
from foveate.models.reference_video.architecture import PIXELS, SIDE
from foveate.tasks.base import Sample
from foveate.tasks.registry import regime_sample

KINDS = {"videos": 0.6, "long": 0.11, "longer": 0.11, "longest": 0.08, "pictures": 0.1}  # share of the steps
SIZES = {"videos": 1.0, "long": 0.5, "longer": 0.25, "longest": 0.125, "pictures": 4.0}
"""Samples of a step relative to the batch size."""
REGIMES = {
    "videos": {
        **{"motion": 1.2, "mover": 0.8, "panning": 1.2, "order": 1.2, "times": 4.5},
        **{"change": 1.5, "when": 2.0, "slides": 2.0, "idle": 0.8},
    },
    "long": {"idle16": 1.0},
    "longer": {"idle32": 1.0},
    "longest": {"idle64": 1.0},
    "pictures": {"single": 1.0, "search": 1.0, "counting": 1.0, "relations": 1.0, "digits": 1.0},
}  # what can be read at half the side; relative to each other


def small(images: np.ndarray) -> np.ndarray:
    """Frames (T, 96, 96, 3) uint8 at the model's size, as the processor makes them: (T, 48, 48, 3)."""
    size = (PIXELS, PIXELS)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images])


def frames_of(sample: Sample, one: bool = False) -> np.ndarray:
    """(T, H, W, 3) uint8: what the model is shown of a sample; `one`: the middle frame only."""
    return sample.image[None] if one or sample.clip is None else sample.clip.frames


def pixels_of(samples: list[Sample], one: bool = False) -> Tensor:
    """(B, T, 3, 48, 48) float32; see `frames_of`."""
    return normalised(np.stack([small(frames_of(sample, one)) for sample in samples]))


def coarse(dense: np.ndarray) -> np.ndarray:
    """Labels (T, 24, 24, 2) of cells of 4 px as those of 8 px (T, 12, 12, 2): the one that most of the four labelled
    cells carry, 0 where fewer than two are labelled; equal counts go to the lower class."""
    frames, rows, columns, _ = dense.shape
    code = dense[..., 0].astype(np.int64) * 64 + dense[..., 1]
    fours = code.reshape(frames, rows // 2, 2, columns // 2, 2).swapaxes(2, 3).reshape(frames, rows // 2, -1, 4)
    fours = np.sort(fours, axis=-1)
    votes = (fours[..., :, None] == fours[..., None, :]).sum(-1) * (fours > 0)
    best = np.take_along_axis(fours, votes.argmax(-1)[..., None], axis=-1)[..., 0]
    best = np.where((fours > 0).sum(-1) >= 2, best, 0)
    return np.stack([best // 64, best % 64], axis=-1)


def dense_labels(sample: Sample) -> np.ndarray:
    """(T * 36, 4, 2) labels of four 8 x 8 px cells in each patch of each frame."""
    return patch_labels(coarse(sample.dense if sample.clip is not None else sample.dense[None]))


def collate(rows: list[Drawn]) -> Batch:
    """Stacks rows of equally many frames."""
    samples = [sample for sample, _, _ in rows]
    pixels = pixels_of(samples)
    grid = (pixels.shape[1], SIDE, SIDE)
    return stacked(rows, pixels, grid, np.stack([dense_labels(sample) for sample in samples]))


def kind_of(seed: int, step: int) -> str:
    """What a step is made of."""
    return random.Random(f"{seed}/step/{step}").choices(list(KINDS), list(KINDS.values()))[0]


class Samples(Dataset):
    """Sample (kind, i) of endless streams: its regime is drawn by weight, its index inside the regime grows with i."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed

    def __getitem__(self, at: tuple[str, int]) -> Drawn:
        (kind, i), weights = at, REGIMES[at[0]]
        regime = random.Random(f"{self.seed}/{kind}/{i}").choices(list(weights), list(weights.values()))[0]
        return drawn(regime_sample(regime, "host-train", i), self.tokenizer)


class Steps(Sampler):
    """The samples of each step from `start` on, so that a resumed run draws what the first one would have."""

    def __init__(self, seed: int, start: int, steps: int, size: int) -> None:
        self.seed, self.start, self.steps, self.size = seed, start, steps, size

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        for step in range(self.start, self.steps):
            kind = kind_of(self.seed, step)
            size = max(1, round(self.size * SIZES[kind]))
            yield [(kind, i) for i in range(step * size, (step + 1) * size)]


def batches(
    tokenizer: PreTrainedTokenizerBase, seed: int, start: int, steps: int, size: int, workers: int
) -> DataLoader:
    """Batches of steps start..steps - 1, drawn by `workers` processes (0 = in this one)."""
    return DataLoader(
        Samples(tokenizer, seed),
        batch_sampler=Steps(seed, start, steps, size),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )

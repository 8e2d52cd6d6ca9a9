"""Training batches: pictures, or frames of videos, with several packed question-answer turns each, drawn from the
tasks' host-train split.

All turns of a picture share one sequence: each turn sees the picture and itself, never another turn, and its
positions start where a lone question's would. So the picture's part of the decoder is paid once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from foveate.models.reference.architecture import GRID
from foveate.tasks.base import IMAGE_SIZE, Box, Sample, Turn
from foveate.tasks.registry import regime_sample

TEXT = 56  # packed text tokens per picture
CAPTION = 32
MOSTLY = 0.9  # of a look must be on patches that are shown
PICTURE = (1, GRID, GRID)  # grid of a picture's patches: frames, rows, columns
Drawn = tuple[Sample, np.ndarray, list[int]]  # a sample, its packed turns, the tokens of its caption


@dataclass
class Batch:
    """B pictures. pixels (B, 3, H, W) float32, (B, T, 3, H, W) where they are videos, whose frames' patches stand one
    behind the other; text, turn, place, target (B, TEXT) int64: token, its turn (-1 =
    padding), its position behind the picture, the token to predict there (-100 = none); looks (B, TEXT, 3, 1 + 144)
    float32: the start token, then which patches hold the first and second thing that the question names, and the
    answer, rows that sum to 1 or are 0 (not known); caption (B, CAPTION); dense (B, 144, 4, 2) class and colour of
    each patch's four cells (-100 = unlabelled); kept (B, K) int64, the patches that the decoder is shown, ascending,
    with a look for each, or None = all."""

    pixels: Tensor
    text: Tensor
    turn: Tensor
    place: Tensor
    target: Tensor
    looks: Tensor
    caption: Tensor
    dense: Tensor
    kept: Tensor | None = None

    def to(self, device: str) -> Batch:
        there = {name: value for name, value in vars(self).items() if value is not None}
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in there.items()})

    def shown(self, kept: Tensor) -> Batch:
        """The batch whose decoder is shown some patches (B, K) only. What the looks had on others is not known then."""
        index = torch.cat([torch.zeros_like(kept[:, :1]), 1 + kept], dim=1)[:, None, None]
        looks = self.looks.gather(-1, index.expand(*self.looks.shape[:3], -1))
        total = looks.sum(-1, keepdim=True)
        return replace(self, kept=kept, looks=torch.where(total > MOSTLY, looks / total.clamp(min=MOSTLY), 0.0))


def pack(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(4, TEXT): token, turn, place, target. Turns that do not fit are left out."""
    out = np.zeros((4, TEXT), dtype=np.int64)
    out[0], out[1], out[3] = tokenizer.pad_token_id, -1, -100
    at = 0
    for number, turn in enumerate(sample.turns):
        question = tokenizer(turn.question + "<answer>", add_special_tokens=False).input_ids
        answer = [*tokenizer(turn.answers[0], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        tokens = [*question, *answer[:-1]]
        end = at + len(tokens)
        if end > TEXT:
            break
        out[0, at:end], out[1, at:end], out[2, at:end] = tokens, number, range(len(tokens))
        out[3, end - len(answer) : end] = answer
        at = end
    return out


def looks_of(sample: Sample, packed: np.ndarray, grid: tuple[int, int, int] = PICTURE) -> np.ndarray:
    """(TEXT, 3, 1 + patches) looks of the turns that `pack` has taken."""
    out = np.zeros((TEXT, 3, 1 + int(np.prod(grid))), dtype=np.float32)
    for number in range(packed[1].max() + 1):
        answer = (packed[1] == number) & (packed[3] != -100)
        out[answer] = turn_looks(sample.turns[number], int(answer.sum()), grid)
    return out


def turn_looks(turn: Turn, length: int, grid: tuple[int, int, int] = PICTURE) -> np.ndarray:
    """(length, 3, 1 + patches) looks for an answer of `length` tokens, the closing one included: the two things that
    the question names (a lone one twice), and where the answer stands, character by character where it is spelled.

    Who counts n things looks at each and at the start token with equal weight: attention sums to 1 and would be the
    same for two things and for three; with the start token in it, its share 1 / (n + 1) says how many there are.
    """
    out = np.zeros((length, 3, 1 + int(np.prod(grid))), dtype=np.float32)
    for place in range(2 if turn.via else 0):
        out[:, place, 1:] = coverage(turn.via[min(place, len(turn.via) - 1)], grid)
    if turn.template.startswith("count"):
        out[:, 2, 0] = 1 / (len(turn.at) + 1)
        out[:, 2, 1:] = sum((coverage((box,), grid) for box in turn.at), np.zeros(1)) / (len(turn.at) + 1)
        return out
    spelled = len(turn.at) == length - 1
    for number in range(length):
        one = spelled and number < length - 1
        out[number, 2, 1:] = coverage(turn.at[number : number + 1] if one else turn.at, grid)
    return out


def coverage(boxes: tuple[Box, ...], grid: tuple[int, int, int] = PICTURE) -> np.ndarray:
    """(patches,) how much of the boxes' area lies in each patch, summing to 1; zeros without boxes."""
    _, rows, columns = grid
    total = np.zeros(grid, dtype=np.float32)
    for left, top, right, bottom, *frame in boxes:
        across, down = (
            np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None)
            for edges, start, end in (
                (np.arange(columns + 1) * (IMAGE_SIZE / columns), left, right),
                (np.arange(rows + 1) * (IMAGE_SIZE / rows), top, bottom),
            )
        )
        total[frame[0] if frame else 0] += down[:, None] * across
    return total.ravel() / max(total.sum(), 1e-6)


def dense_labels(sample: Sample) -> np.ndarray:
    """(144, 4, 2) labels of the four 4 x 4 px cells in each patch; -100 where the sample has none."""
    if sample.dense is None:
        return np.full((GRID * GRID, 4, 2), -100, dtype=np.int64)
    return patch_labels(sample.dense[None])


def patch_labels(cells: np.ndarray) -> np.ndarray:
    """Labels of cells (T, 2 h, 2 w, 2) as those of patches of four: (T h w, 4, 2)."""
    frames, rows, columns, _ = cells.shape
    fours = cells.reshape(frames, rows // 2, 2, columns // 2, 2, 2).transpose(0, 1, 3, 2, 4, 5)
    return fours.reshape(-1, 4, 2).astype(np.int64)


def drawn(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Drawn:
    """A sample with its words as tokens."""
    caption = tokenizer(sample.caption, truncation=True, max_length=CAPTION - 1).input_ids
    return sample, pack(sample, tokenizer), [*caption, tokenizer.eos_token_id]


class Pictures(Dataset):
    """Picture i of an endless stream: its regime is drawn by weight, its index inside the regime grows with i."""

    def __init__(self, weights: dict[str, float], tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.regimes, self.weights = list(weights), list(weights.values())
        self.tokenizer, self.seed = tokenizer, seed

    def __getitem__(self, i: int) -> Drawn:
        regime = random.Random(f"{self.seed}/{i}").choices(self.regimes, self.weights)[0]
        return drawn(regime_sample(regime, "host-train", i), self.tokenizer)


class Steps(Sampler):
    """Batches of consecutive pictures from step `start` on, so that a resumed run draws what the first one would
    have."""

    def __init__(self, start: int, steps: int, size: int) -> None:
        self.start, self.steps, self.size = start, steps, size

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            yield list(range(step * self.size, (step + 1) * self.size))


def collate(rows: list[Drawn]) -> Batch:
    """Stacks rows of pictures."""
    images = normalised(np.stack([sample.image for sample, _, _ in rows]))
    return stacked(rows, images, PICTURE, np.stack([dense_labels(sample) for sample, _, _ in rows]))


def stacked(rows: list[Drawn], pixels: Tensor, grid: tuple[int, int, int], dense: np.ndarray) -> Batch:
    """A batch of rows whose pixels (as `normalised` gives them) and dense labels are made."""
    packed = np.stack([p for _, p, _ in rows])
    caption = np.zeros((len(rows), CAPTION), dtype=np.int64)
    for row, (_, _, tokens) in zip(caption, rows, strict=True):
        row[: len(tokens)] = tokens
    return Batch(
        pixels=pixels,
        text=torch.from_numpy(packed[:, 0]),
        turn=torch.from_numpy(packed[:, 1]),
        place=torch.from_numpy(packed[:, 2]),
        target=torch.from_numpy(packed[:, 3]),
        looks=torch.from_numpy(np.stack([looks_of(sample, p, grid) for sample, p, _ in rows])),
        caption=torch.from_numpy(caption),
        dense=torch.from_numpy(dense),
    )


def normalised(images: np.ndarray) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 as the processor gives (mean 0.5, deviation 0.25)."""
    return (torch.from_numpy(images).movedim(-1, -3).float() / 255 - 0.5) / 0.25


def batches(
    weights: dict[str, float],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    start: int,
    steps: int,
    size: int,
    workers: int,
) -> DataLoader:
    """Batches of steps start..steps - 1, rendered by `workers` processes (0 = in this one)."""
    return DataLoader(
        Pictures(weights, tokenizer, seed),
        batch_sampler=Steps(start, steps, size),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )

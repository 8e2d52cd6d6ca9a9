"""Qwen3-VL: a tower with learned and rotary positions, a 2 x 2 merger, deepstack levels, a Qwen3 decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from foveate.compressors.base import Grid
from foveate.models.errors import BadInput
from foveate.models.families.qwen import VIDEO_NAMES, QwenHost, QwenInputs, QwenTensors, framed_size
from foveate.models.families.qwen_tower import QwenTower, in_units
from foveate.models.inputs import Film, Framed, View, in_words
from foveate.models.tensors import runs
from foveate.models.tower import EncoderGroup

TOLD = re.compile(r"<\s*(\d+(?:\s*\.\s*\d+)?)\s*seconds\s*>")
"""How the time of a frame stands in a prompt; some tokenizers put spaces between."""


class Qwen3Tower(QwenTower):
    """Learned positions are interpolated to the picture; some blocks' states ride along to the decoder's first layers.

    Args:
        visual: `Qwen3VLVisionModel`.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual)
        named = list(self.config.deepstack_visual_indexes)
        self.levels = tuple(sorted(named))
        self.mergers = [visual.deepstack_merger_list[named.index(block)] for block in self.levels]

    def embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """See `Tower.embed`."""
        x = super().embed(pixels, grid)
        return x + self.positions(grid).to(x.dtype)

    def positions(self, grid: Grid) -> Tensor:
        """(m, C) float32: the square table, its corners on the picture's corners, bilinearly in between."""
        side = self.visual.num_grid_per_side
        table = self.visual.pos_embed.weight.float().T.reshape(1, -1, side, side)
        size = (grid[1] * self.side, grid[2] * self.side)
        spread = F.interpolate(table, size=size, mode="bilinear", align_corners=True)
        return in_units(spread[0].permute(1, 2, 0), self.side)

    def extra(self, group: EncoderGroup) -> Tensor | None:
        """See `Tower.extra`."""
        if not self.levels:
            return None
        return torch.stack([self.tokens(self.behind(group, b), group.riders.grid) for b in self.levels], dim=2)

    def project(self, x: Tensor) -> Tensor:
        """See `QwenTower.project`."""
        merger = self.visual.merger
        return _through(merger, merger.norm(x.unflatten(-1, (self.merge, -1))).flatten(-2))

    def project_extra(self, extra: Tensor) -> Tensor:
        """(..., L, 4 C) -> (..., L, D), every level by a merger of its own."""
        levels = [_through(m, m.norm(x)) for m, x in zip(self.mergers, extra.unbind(-2), strict=True)]
        return torch.stack(levels, dim=-2)


def _through(merger: nn.Module, normed: Tensor) -> Tensor:
    return merger.linear_fc2(merger.act_fn(merger.linear_fc1(normed)))


class Qwen3Tensors(QwenTensors):
    """See `QwenTensors`; the time of each frame of a video's grid is told in words in front of it."""

    def films(self, lengths: Sequence[int], prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[Film]:
        """See `QwenTensors.films`: both frames of a pair are taken to be shown at the time that is told."""
        told: list[float] = []
        for prompt in prompts:
            end = 0
            for run in runs(prompt, self.marks[1]):
                said = TOLD.findall(self.inputs.tokenizer.decode(prompt[end : run[0]]))
                if not said:
                    raise BadInput("a frame of a video stands in the prompt without its time in front")
                told.append(float("".join(said[-1].split())))
                end = run[-1] + 1
        if len(told) != sum(lengths):
            raise BadInput(f"{VIDEO_NAMES[1]}: {sum(lengths)} frames, the prompts show {len(told)}")
        each = [told[end - t : end] for t, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True)]
        twice = [tuple(second for second in seconds for _ in range(self.inputs.together)) for seconds in each]
        return [Film(seconds, max(seconds[-1], 0.1)) for seconds in twice]


class Qwen3Inputs(QwenInputs):
    """Videos tell the time in words: in front of the tokens of each frame of their grid. See `QwenInputs`."""

    tensors = Qwen3Tensors
    usual_video = {**QwenInputs.usual_video, "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}}

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """See `QwenInputs.frame_size`: all frames share the pixels."""
        grow = max(1.0, self.unit / height, self.unit / width)
        counted = max(1, round(frames / self.together)) * self.together
        size = (int(height * grow), int(width * grow)) if grow > 1 else (height, width)
        return framed_size(*size, self.unit, *self.bounds, frames, counted)

    def told(self, view: View, size: tuple[int, int], film: Film) -> Framed:
        """See `QwenInputs.told`. Raises: HostError where markers and tokens do not match."""
        return in_words(self.tokenizer, self._text, self.video_token, view, size, film)

    def _text(self, film: Film, run: str) -> str:
        """The text in a video's place, with the markers of one frame of its grid."""
        seconds = [*film.seconds, *[film.seconds[-1]] * (-len(film.seconds) % self.together)]
        times = zip(seconds[:: self.together], seconds[self.together - 1 :: self.together], strict=True)
        start = getattr(self.tokenizer, "vision_start_token", "<|vision_start|>")
        end = getattr(self.tokenizer, "vision_end_token", "<|vision_end|>")
        return "".join(f"<{(first + last) / 2:.1f} seconds>{start}{run}{end}" for first, last in times)

    def step(self, picture: Framed) -> float:
        """See `QwenInputs.step`: each frame stands between words, and is numbered as a picture."""
        return 0.0


class Qwen3VLHost(QwenHost):
    """An HF `Qwen3VLForConditionalGeneration`; see `Host`."""

    inputs_class = Qwen3Inputs

    model_class = Qwen3VLForConditionalGeneration
    tower_class = Qwen3Tower
    tower: Qwen3Tower

    def project_extra(self, extra: Tensor) -> Tensor:
        """See `Host.project_extra`."""
        return self.tower.project_extra(extra)

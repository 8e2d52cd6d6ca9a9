"""What Qwen2.5-VL and Qwen3-VL share around their towers: pictures of any size, prompts with three position ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.decoder import BY_THREE, Decoder, check_decoder
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.families.qwen_tower import QwenTower
from foveate.models.host import Host
from foveate.models.inputs import Framed, Inputs, View, one_view, resized
from foveate.plans.cost import HostShape, ViTShape

LONGEST_SIDE = 200
"""A picture's longer side may be this many times its shorter one."""

USUAL: Grid = (1, 16, 16)
"""Tokens of a picture of the usual size: about 450 to 510 pixels a side. These models take (nearly) any."""


def framed_size(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) at which a picture is shown: multiples of `unit`, `least` to `most` pixels, its shape kept.

    Raises:
        BadInput: a picture that is much longer than wide.
    """
    if max(height, width) > LONGEST_SIDE * min(height, width):
        raise BadInput(f"a picture of {height} x {width}: its sides differ by more than {LONGEST_SIDE} times")
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        return max(unit, int(height / shrink / unit) * unit), max(unit, int(width / shrink / unit) * unit)
    if tall * wide < least:
        grow = math.sqrt(least / (height * width))
        return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return tall, wide


class QwenInputs(Inputs):
    """Pictures of one view at (nearly) their own size, one token for each square of `unit` pixels.

    Args:
        processor: see `Inputs`.
        image_token_id: see `Inputs`.
        video_token_id: refused in questions, as it would be read as one more picture.
        unit: pixels along a token's side.
    """

    def __init__(self, processor: Any, image_token_id: int, video_token_id: int, unit: int) -> None:
        super().__init__(processor, image_token_id)
        self.unit, self.video_token = unit, self.tokenizer.convert_ids_to_tokens(video_token_id)

    def framed(self, rgb: np.ndarray) -> Framed:
        """See `Inputs.framed`. Raises: BadInput on a shape that the model does not take."""
        frame, size = self.processor.image_processor, rgb.shape[:2]
        if frame.do_resize:
            size = framed_size(*size, self.unit, frame.size["shortest_edge"], frame.size["longest_edge"])
            rgb = np.asarray(Image.fromarray(rgb).resize(size[::-1], frame.resample))
        if size[0] % self.unit or size[1] % self.unit:
            raise BadInput(f"a picture of {size[0]} x {size[1]}: this model's are multiples of {self.unit}, unresized")
        view = View(rgb, (1, size[0] // self.unit, size[1] // self.unit))
        return one_view(view, self.image_token_id, rgb.shape[:2])

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """See `Inputs.refit`."""
        return one_view(resized(picture.views[0], grids[0], self.unit), self.image_token_id, picture.size)

    def pixels(self, views: Sequence[View]) -> Tensor:
        """See `Inputs.pixels`."""
        return self.normalised(views)

    def prompt(self, question: str, number: int, pictures: int = 1) -> tuple[str, list[int]]:
        """See `Inputs.prompt`."""
        if isinstance(question, str) and self.video_token and self.video_token in question:
            raise BadInput(f"question {number}: contains the video token {self.video_token!r}")
        return super().prompt(question, number, pictures)

    def places(self, ids: np.ndarray, pictures: Sequence[Framed]) -> np.ndarray:
        """(S, 3) time, row and column of each entry.

        A word has one number for all three. A picture's tokens count rows and columns from the number that the next
        word would have had; the next word goes on behind the longer side.
        """
        shown, parts, entry, number = np.flatnonzero(ids == self.image_token_id), [], 0, 0
        for picture in pictures:
            view = picture.views[0]
            words = int(shown[shown >= entry][0]) - entry
            parts.append(_counted(number, words))
            number += words
            parts.append(number + np.indices(view.grid).reshape(3, -1).T)
            number, entry = number + max(view.grid[1:]), entry + words + view.n
        return np.concatenate([*parts, _counted(number, len(ids) - entry)]).astype(np.int64)


def _counted(first: int, n: int) -> np.ndarray:
    """(n, 3) of n words that are numbered from `first`."""
    return np.repeat(np.arange(first, first + n)[:, None], 3, axis=1)


class QwenHost(Host):
    """What the hosts of Qwen2.5-VL and Qwen3-VL share; see `Host`.

    The model's own record of how far pictures shift later positions (`rope_deltas`) is neither read nor written.
    """

    tower: QwenTower
    tower_class: ClassVar[type[QwenTower]]

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        check_decoder(config, name, BY_THREE)
        vision = config.vision_config
        if not isinstance(vision.patch_size, int) or not isinstance(vision.temporal_patch_size, int):
            raise UnsupportedModel(
                f"{name}: patches of {vision.patch_size} pixels and {vision.temporal_patch_size} frames: "
                "needs one number each"
            )

    def parts(self) -> None:
        """See `Host.parts`."""
        core = self.model.model
        self.tower = self.tower_class(core.visual)
        self.decoder = Decoder(core.language_model, self.model.lm_head)
        self.grid, self.shape = USUAL, shape_of(self.tower, self.decoder)

    def inputs_of(self, processor: Any) -> QwenInputs:
        """See `Host.inputs_of`."""
        c = self.model.config
        return QwenInputs(processor, c.image_token_id, c.video_token_id, self.tower.patch * self.tower.side)

    def project(self, x: Tensor) -> Tensor:
        """See `Host.project`."""
        return self.tower.project(x)


def shape_of(tower: QwenTower, decoder: Decoder) -> HostShape:
    """Sizes for the cost model: a still picture is embedded in all frames, the merger works on whole units."""
    v = tower.config
    unit = v.hidden_size * tower.merge
    return HostShape(
        vit=ViTShape(
            dim=v.hidden_size,
            mlp=v.intermediate_size,
            layers=tower.depth,
            heads=tower.heads,
            patch=tower.patch,
            channels=v.in_channels * tower.frames,
            cls=False,
            gated=tower.gated,
            merge=tower.merge,
            window=tower.window,
            full_blocks=tuple(sorted(tower.full)),
        ),
        projector=(unit, unit, v.out_hidden_size),
        decoder=decoder.shape,
        bytes_per_value=decoder.bytes_per_value,
        deepstack=len(tower.levels),
    )

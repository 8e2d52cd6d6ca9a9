"""What Qwen2.5-VL and Qwen3-VL share around their towers: pictures of any size, prompts with three position ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.decoder import BY_THREE, Decoder, check_decoder
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.families.qwen_tower import QwenTower, patches_of
from foveate.models.host import Host
from foveate.models.inputs import Framed, Inputs, Row, View, one_view, resized
from foveate.models.tensors import Tensors
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


class QwenTensors(Tensors):
    """Patches (all of all pictures, 3 * frames * patch * patch), the pictures' grids of patches, and which ids are
    picture: without the last the model numbers pictures like words."""

    names = Tensors.names | {"image_grid_thw", "mm_token_type_ids"}

    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """See `Tensors.of`."""
        how = self.inputs.processor.image_processor
        views, side = [view for row in rows for view in row.views], how.merge_size
        patches = [
            patches_of(self.inputs.pixels([view]), how.patch_size, side, how.temporal_patch_size)[0] for view in views
        ]
        return {
            "pixel_values": torch.cat(patches),
            "image_grid_thw": torch.tensor([(t, side * h, side * w) for t, h, w in (view.grid for view in views)]),
            "mm_token_type_ids": (ids == self.token).int(),
        }

    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """See `Tensors.pictures`."""
        how, values = self.inputs.processor.image_processor, self.tensor(given, "pixel_values", 2)
        grids, kinds = self.tensor(given, "image_grid_thw", 2).tolist(), self.tensor(given, "mm_token_type_ids", 2)
        if not torch.equal(kinds.bool(), (given["input_ids"] == self.token).to(kinds.device)):
            raise BadInput("mm_token_type_ids: does not mark the image tokens")
        side, patch, frames = how.merge_size, how.patch_size, how.temporal_patch_size
        sizes = [t * h * w for t, h, w in grids]
        if any(t != 1 or h % side or w % side for t, h, w in grids) or sum(sizes) != len(values):
            raise BadInput(
                f"image_grid_thw {grids}: no still pictures in units of {side} x {side}, {len(values)} patches"
            )
        if values.shape[1] != 3 * frames * patch**2:
            raise BadInput(
                f"pixel_values: patches of {values.shape[1]} values, the model's have {3 * frames * patch**2}"
            )
        made = []
        for (_, h, w), patches in zip(grids, values.split(sizes), strict=True):
            split = patches.reshape(h // side, w // side, side, side, 3, frames, patch, patch)
            if not torch.equal(split[:, :, :, :, :, :1].expand_as(split), split):
                raise BadInput("pixel_values: the frames of a still picture differ")
            pixels = split[:, :, :, :, :, 0].permute(4, 0, 2, 5, 1, 3, 6).reshape(3, h * patch, w * patch)
            view = View(self.whole(pixels), (1, h // side, w // side))
            made.append(one_view(view, self.token, view.pixels.shape[:2]))
        return self.dealt(prompts, made)


class QwenInputs(Inputs):
    """Pictures of one view at (nearly) their own size, one token for each square of `unit` pixels.

    Args:
        processor: see `Inputs`.
        image_token_id: see `Inputs`.
        video_token_id: refused in questions, as it would be read as one more picture.
        unit: pixels along a token's side.
    """

    tensors = QwenTensors

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

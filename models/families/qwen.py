"""What Qwen2.5-VL and Qwen3-VL share around their towers: pictures of any size, prompts with three position ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
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
from foveate.models.inputs import Film, Framed, Inputs, Row, View, film_of, one_view, resized, scaled
from foveate.models.processors import video_settings
from foveate.models.tensors import Tensors
from foveate.plans.cost import HostShape, ViTShape
from foveate.tasks.clip import Clip

LONGEST_SIDE = 200
"""A picture's longer side may be this many times its shorter one."""

USUAL: Grid = (1, 16, 16)
"""Tokens of a picture of the usual size: about 450 to 510 pixels a side. These models take (nearly) any."""


def framed_size(
    height: int, width: int, unit: int, least: int, most: int, frames: int = 1, counted: int = 1
) -> tuple[int, int]:
    """(height, width) at which a picture is shown: multiples of `unit`, `least` to `most` pixels, its shape kept.

    Args:
        height: of the picture.
        width: of it.
        unit: pixels along a token's side.
        least: pixels that it has at least, or all frames of a video together.
        most: the same at most.
        frames: how many share them.
        counted: the same in whole tokens: whether they are kept is asked of these.
    Raises:
        BadInput: a picture that is much longer than wide.
    """
    if max(height, width) > LONGEST_SIDE * min(height, width):
        raise BadInput(f"a picture of {height} x {width}: its sides differ by more than {LONGEST_SIDE} times")
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if counted * tall * wide > most:
        shrink = math.sqrt(frames * height * width / most)
        return max(unit, int(height / shrink / unit) * unit), max(unit, int(width / shrink / unit) * unit)
    if counted * tall * wide < least:
        grow = math.sqrt(least / (frames * height * width))
        return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return tall, wide


VIDEO_NAMES = ("pixel_values_videos", "video_grid_thw")


class QwenTensors(Tensors):
    """Patches (all of all pictures, 3 * frames * patch * patch), the pictures' grids of patches, and which ids are
    picture: without the last the model numbers pictures like words."""

    names = Tensors.names | {"image_grid_thw", "mm_token_type_ids", *VIDEO_NAMES, "second_per_grid_ts"}

    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """See `Tensors.of`: the same in names of their own for videos, and how many seconds a token of each spans."""
        pictures = [picture for row in rows for picture in row.pictures]
        still, films = ([p for p in pictures if (p.film is None) == yes] for yes in (True, False))
        kinds = (ids == self.token).int() + 2 * (ids == self.inputs.video_token_id).int()
        made: dict[str, Tensor] = {"mm_token_type_ids": kinds}
        for names, each in ((("pixel_values", "image_grid_thw"), still), (VIDEO_NAMES, films)):
            if each:
                views = [picture.views[0] for picture in each]
                made |= dict(
                    zip(names, (torch.cat([self._patches(view) for view in views]), self._grids(views)), strict=True)
                )
        if films and self.inputs.pace:
            spans = [self.inputs.together / film.film.rate for film in films]
            made["second_per_grid_ts"] = torch.tensor(spans, dtype=torch.float64)
        return made

    def _patches(self, view: View) -> Tensor:
        """(patches, values) of a view."""
        how, units = self.inputs.processor.image_processor, view.units
        pixels = self.inputs.pixels(units)
        return patches_of(pixels, how.patch_size, how.merge_size, how.temporal_patch_size).flatten(0, 1)

    def _grids(self, views: Sequence[View]) -> Tensor:
        """(views, 3) of patches."""
        side = self.inputs.processor.image_processor.merge_size
        return torch.tensor([(t, side * h, side * w) for t, h, w in (view.grid for view in views)])

    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """See `Tensors.pictures`."""
        films = given.get(VIDEO_NAMES[0]) is not None
        stills = not films or given.get("pixel_values") is not None
        made = self._stills(given) if stills else []
        kinds, ids = self.tensor(given, "mm_token_type_ids", 2), given["input_ids"]
        if not torch.equal(kinds, ((ids == self.token).int() + 2 * (ids == self.marks[1]).int()).to(kinds)):
            raise BadInput("mm_token_type_ids: does not mark the image tokens")
        return self.dealt(prompts, [*made, *(self._films(prompts, given) if films else ())])

    def _stills(self, given: Mapping[str, Any]) -> list[Framed]:
        """Pictures. Raises: BadInput."""
        made = []
        for frames in self._unpacked(given, "pixel_values", "image_grid_thw"):
            if len(frames) != 1 or not torch.equal(frames[0, :1].expand_as(frames[0]), frames[0]):
                raise BadInput("pixel_values: the frames of a still picture differ")
            made.append(one_view(self._view(frames[0, 0], 1), self.token, tuple(frames.shape[-2:])))
        return made

    def _films(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[Framed]:
        """Videos; their own sizes are not known. Raises: BadInput."""
        packed = self._unpacked(given, *VIDEO_NAMES)
        films = self.films([len(frames) for frames in packed], prompts, given)
        return [
            self.inputs.told(self._view(frames.flatten(0, 1), len(frames)), tuple(frames.shape[-2:]), film)
            for frames, film in zip(packed, films, strict=True)
        ]

    def films(self, lengths: Sequence[int], prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[Film]:
        """When the frames of each video are shown, as its position ids say it.

        Args:
            lengths: frames of each video's grid.
            prompts: token ids of each row.
            given: see `Tensors.pictures`.
        Raises:
            BadInput: times that are not there, or that fall between the numbers of two frames.
        """
        spans = given.get("second_per_grid_ts")
        spans = torch.ones(len(lengths)) if spans is None else torch.as_tensor(spans).flatten().cpu()
        if len(spans) != len(lengths) or not bool((spans > 0).all()):
            raise BadInput(f"second_per_grid_ts: {spans.tolist()} for {len(lengths)} videos")
        found = []
        for t, span in zip(lengths, spans, strict=True):
            each = float(span) / self.inputs.together
            film = Film(tuple(each * i for i in range(t * self.inputs.together)), each * t * self.inputs.together)
            own = (np.arange(t) * (self.inputs.pace * self.inputs.together / film.rate)).astype(np.int64)
            if own.tolist() != (torch.arange(t) * (self.inputs.pace * span)).long().tolist():
                raise BadInput(f"second_per_grid_ts: {float(span)} puts frames between two numbers")
            found.append(film)
        return found

    def _unpacked(self, given: Mapping[str, Any], pixels: str, grid: str) -> list[Tensor]:
        """(T, frames, 3, H, W) normalised pixels of each picture or video. Raises: BadInput."""
        how, values = self.inputs.processor.image_processor, self.tensor(given, pixels, 2)
        grids = self.tensor(given, grid, 2).tolist()
        side, patch, frames = how.merge_size, how.patch_size, how.temporal_patch_size
        sizes = [t * h * w for t, h, w in grids]
        if any(min(each) < 1 or each[1] % side or each[2] % side for each in grids) or sum(sizes) != len(values):
            raise BadInput(f"{grid} {grids}: no pictures in units of {side} x {side}, {len(values)} patches")
        if values.shape[1] != 3 * frames * patch**2:
            raise BadInput(f"{pixels}: patches of {values.shape[1]} values, the model's have {3 * frames * patch**2}")
        out = []
        for (t, h, w), patches in zip(grids, values.split(sizes), strict=True):
            split = patches.reshape(t, h // side, w // side, side, side, 3, frames, patch, patch)
            out.append(split.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t, frames, 3, h * patch, w * patch))
        return out

    def _view(self, pixels: Tensor, frames: int) -> View:
        """A view of so many frames of its grid, of pixels (3, H, W) or (F, 3, H, W). Raises: BadInput."""
        unit, whole = self.inputs.unit, self.whole(pixels)
        return View(whole, (frames, whole.shape[-3] // unit, whole.shape[-2] // unit))


class QwenInputs(Inputs):
    """Pictures of one view at (nearly) their own size, one token for each square of `unit` pixels.

    Args:
        processor: see `Inputs`.
        image_token_id: see `Inputs`.
        video_token_id: see `Inputs`.
        unit: pixels along a token's side.
        together: frames of a video that one token spans.
        pace: how far the time of a video's token moves on with each second; 0 = its words tell the time.

    Attributes:
        usual_video: settings of the video processor where nothing is said.
    """

    tensors = QwenTensors
    usual_video: ClassVar[Mapping[str, Any]] = {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
        "resample": Image.Resampling.BICUBIC,
    }

    def __init__(
        self, processor: Any, image_token_id: int, video_token_id: int, unit: int, together: int = 2, pace: float = 0.0
    ) -> None:
        super().__init__(processor, image_token_id, video_token_id)
        self.unit, self.together, self.pace = unit, together, pace

    def framed(self, rgb: np.ndarray) -> Framed:
        """See `Inputs.framed`. Raises: BadInput on a shape that the model does not take."""
        frame, size = self.processor.image_processor, rgb.shape[:2]
        if frame.do_resize:
            size = framed_size(*size, self.unit, frame.size["shortest_edge"], frame.size["longest_edge"])
            rgb = scaled(rgb, size, frame.resample)
        if size[0] % self.unit or size[1] % self.unit:
            raise BadInput(f"a picture of {size[0]} x {size[1]}: this model's are multiples of {self.unit}, unresized")
        view = View(rgb, (1, size[0] // self.unit, size[1] // self.unit))
        return one_view(view, self.image_token_id, rgb.shape[:2])

    def filmed(self, clip: Clip) -> Framed:
        """See `Inputs.filmed`: the last frame is repeated until tokens span whole ones. Raises: BadInput on a shape."""
        size = self.frame_size(len(clip.frames), *clip.frames.shape[1:3])
        frames = scaled(clip.frames, size, self.video_settings["resample"])
        frames = np.concatenate([frames, frames[-1:].repeat(-len(frames) % self.together, axis=0)])
        grid = (len(frames) // self.together, size[0] // self.unit, size[1] // self.unit)
        return self.told(View(frames, grid), clip.frames.shape[1:3], film_of(clip))

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the frames of a video are shown. Raises: BadInput."""
        return framed_size(height, width, self.unit, *self.bounds)

    @cached_property
    def video_settings(self) -> dict[str, Any]:
        """Of the video processor."""
        return video_settings(self.processor, self.usual_video)

    @property
    def bounds(self) -> tuple[int, int]:
        """Pixels of a frame at least and at most; where a family says so, of all frames."""
        size = self.video_settings["size"]
        return size["shortest_edge"], size["longest_edge"]

    def told(self, view: View, size: tuple[int, int], film: Film) -> Framed:
        """A video with its prompt entries."""
        return one_view(view, self.video_token_id, size, film=film)

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """See `Inputs.refit`."""
        view = resized(picture.views[0], grids[0], self.unit)
        if picture.film is not None:
            return self.told(view, picture.size, picture.film)
        return one_view(view, self.image_token_id, picture.size)

    def pixels(self, views: Sequence[View]) -> Tensor:
        """See `Inputs.pixels`."""
        return self.normalised(views)

    def places(self, view: np.ndarray, position: np.ndarray, pictures: Sequence[Framed]) -> np.ndarray:
        """(S, 3) time, row and column of each entry.

        A word has one number for all three. A picture's tokens, or those of a video between two words, count times,
        rows and columns from the number that the next word would have had; the next word goes on behind the longer
        side.
        """
        parts, number, runs = [], 0, np.flatnonzero(np.diff(view)) + 1
        for own, at in zip(np.split(view, runs), np.split(position, runs), strict=True):
            if own[:1] < 0 or not len(own):
                parts.append(np.repeat(np.arange(number, number + len(own))[:, None], 3, axis=1))
                number += len(own)
                continue
            picture = pictures[own[0]]
            grid = picture.views[0].grid
            place = np.stack(np.unravel_index(at, grid), axis=1)
            place[:, 0] = (place[:, 0] * self.step(picture)).astype(np.int64)
            parts.append(number + place)
            number += max(grid[1:])
        return np.concatenate(parts).astype(np.int64)

    def step(self, picture: Framed) -> float:
        """How far the time of a picture's tokens moves on from one frame of its grid to the next."""
        return 0.0 if picture.film is None else self.pace * self.together / picture.film.rate


class QwenHost(Host):
    """What the hosts of Qwen2.5-VL and Qwen3-VL share; see `Host`.

    The model's own record of how far pictures shift later positions (`rope_deltas`) is neither read nor written.
    """

    tower: QwenTower
    tower_class: ClassVar[type[QwenTower]]
    inputs_class: ClassVar[type[QwenInputs]] = QwenInputs

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
        unit, pace = self.tower.patch * self.tower.side, getattr(c.vision_config, "tokens_per_second", 0.0)
        return self.inputs_class(processor, c.image_token_id, c.video_token_id, unit, self.tower.frames, pace)

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

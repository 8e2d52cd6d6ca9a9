"""LLaVA-1.5: a CLIP or SigLIP tower, an MLP projector, a LLaMA, Qwen2 or Mistral decoder; one view a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from foveate.compressors.base import Grid
from foveate.compressors.learned import Projector
from foveate.models.boxes import Box
from foveate.models.decoder import Decoder, check_decoder
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.host import Host
from foveate.models.inputs import Framed, Inputs, Row, View, film_of, one_view, resized
from foveate.models.tensors import Tensors
from foveate.models.vit import VisionTower
from foveate.plans.cost import HostShape, ViTShape
from foveate.tasks.clip import Clip

TOWERS = ("clip_vision_model", "siglip_vision_model")


class LlavaTensors(Tensors):
    """Pixels (pictures, 3, H, W)."""

    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """See `Tensors.of`."""
        return {"pixel_values": self.inputs.pixels([unit for row in rows for view in row.views for unit in view.units])}

    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """See `Tensors.pictures`."""
        values = self.tensor(given, "pixel_values", 4)
        grid, patch = self.inputs.grid, self.inputs.patch
        size = (3, grid[1] * patch, grid[2] * patch)
        if tuple(values.shape[1:]) != size:
            raise BadInput(f"pixel_values: pictures of {tuple(values.shape[1:])}, the model's are {size}")
        made = [one_view(View(p, grid), self.token, p.shape[:2], self.inputs.cls) for p in self.whole(values)]
        return self.dealt(prompts, made)


class LlavaInputs(Inputs):
    """Pictures of one view, resized and cropped to the tower's own size; videos as such pictures side by side.

    Args:
        processor: see `Inputs`.
        image_token_id: see `Inputs`.
        grid: of a picture's tokens.
        patch: pixels along a token's side.
        cls: the decoder reads CLS too.
    """

    tensors = LlavaTensors

    def __init__(self, processor: Any, image_token_id: int, grid: Grid, patch: int, cls: bool) -> None:
        super().__init__(processor, image_token_id)
        self.grid, self.patch, self.cls = grid, patch, cls

    def framed(self, rgb: np.ndarray) -> Framed:
        """See `Inputs.framed`."""
        return one_view(View(self._frame(rgb), self.grid), self.image_token_id, rgb.shape[:2], self.cls)

    def _frame(self, rgb: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 at the tower's size."""
        frame = self.processor.image_processor([rgb], do_rescale=False, do_normalize=False, return_tensors="pt")
        return frame["pixel_values"][0].permute(1, 2, 0).numpy().astype(np.uint8)

    def filmed(self, clip: Clip) -> Framed:
        """See `Inputs.filmed`: frames as pictures side by side. Raises: BadInput where the decoder reads CLS."""
        if self.cls:
            raise BadInput("a video: this model's decoder reads a CLS of each picture, a video has no place for them")
        frames = np.stack([self._frame(frame) for frame in clip.frames])
        view = View(frames, (len(frames), *self.grid[1:]))
        return one_view(view, self.image_token_id, clip.frames.shape[1:3], film=film_of(clip))

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """See `Inputs.refit`."""
        view = resized(picture.views[0], grids[0], self.patch)
        return one_view(view, self.image_token_id, picture.size, self.cls, picture.film)

    def boxes(self, picture: Framed) -> list[Box]:
        """See `Inputs.boxes`; a processor that crops leaves the middle."""
        how = self.processor.image_processor
        if not (how.do_center_crop and how.do_resize and how.size.get("shortest_edge")):
            return super().boxes(picture)
        scale = how.size["shortest_edge"] / min(picture.size)
        inside = (how.crop_size["height"] / picture.size[0] / scale, how.crop_size["width"] / picture.size[1] / scale)
        return [(0.5 - inside[1] / 2, 0.5 - inside[0] / 2, 0.5 + inside[1] / 2, 0.5 + inside[0] / 2)]


class LlavaHost(Host):
    """An HF `LlavaForConditionalGeneration`; see `Host`."""

    model_class = LlavaForConditionalGeneration

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        check_parts(config, name)
        tower = config.vision_config.model_type
        if config.vision_feature_select_strategy != "full" and tower != "clip_vision_model":
            raise UnsupportedModel(
                f'{name}: feature selection "default" drops a patch of a tower without CLS; use "full"'
            )

    def parts(self) -> None:
        """See `Host.parts`."""
        c, core = self.model.config, self.model.model
        self.tower = VisionTower(core.vision_tower, c.vision_feature_layer)
        self.decoder = Decoder(core.language_model, self.model.lm_head)
        self.cls_stays = c.vision_feature_select_strategy == "full" and self.tower.has_cls
        self.grid, self.shape = self.tower.grid, shape_of(self.tower, self.decoder)

    def inputs_of(self, processor: Any) -> LlavaInputs:
        """See `Host.inputs_of`."""
        return LlavaInputs(
            processor, self.model.config.image_token_index, self.tower.grid, self.tower.patch, self.cls_stays
        )

    def project(self, x: Tensor) -> Tensor:
        """See `Host.project`."""
        return self.model.model.multi_modal_projector(x)

    def matrices(self) -> Projector:
        """See `Host.matrices`."""
        return two_matrices(self.model)


def two_matrices(model: Any) -> Projector:
    """Weights of a LLaVA's projector, where there is GELU and nothing else between its two layers."""
    projector, config = model.model.multi_modal_projector, model.config
    layers = (projector.linear_1, projector.linear_2)
    if config.projector_hidden_act != "gelu" or any(layer.bias is None for layer in layers):
        return ()
    return tuple((layer.weight.detach(), layer.bias.detach()) for layer in layers)


def check_parts(config: Any, name: str) -> None:
    """Refuses a tower, a decoder or a feature layer that cannot be opened. Raises: UnsupportedModel."""
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        raise UnsupportedModel(f"{name}: vision tower {tower!r}; known: {', '.join(TOWERS)}")
    check_decoder(config, name)
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"{name}: vision_feature_layer {config.vision_feature_layer}: needs one layer, not a list"
        )


def shape_of(tower: VisionTower, decoder: Decoder) -> HostShape:
    """Sizes for the cost model of a CLIP or SigLIP tower, a two-matrix projector and a decoder."""
    v = tower.config
    return HostShape(
        vit=ViTShape(
            dim=v.hidden_size,
            mlp=v.intermediate_size,
            layers=tower.depth,
            heads=v.num_attention_heads,
            patch=v.patch_size,
            channels=v.num_channels,
            cls=tower.has_cls,
        ),
        projector=(v.hidden_size, decoder.config.hidden_size, decoder.config.hidden_size),
        decoder=decoder.shape,
        bytes_per_value=decoder.bytes_per_value,
    )

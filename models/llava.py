"""LLaVA, opened: a CLIP or SigLIP tower, an MLP projector, a LLaMA, Qwen2 or Mistral decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from foveate.compressors.base import Grid
from foveate.models.decoder import DECODERS, Decoder
from foveate.models.errors import UnsupportedModel
from foveate.models.fingerprint import fingerprint
from foveate.models.host import Host
from foveate.models.inputs import Framed, Inputs, Pictures, View, one_view, resized
from foveate.models.passes import Pass
from foveate.models.text_tower import TextTower
from foveate.models.visual import VisualState
from foveate.models.vit import VisionTower
from foveate.plans.cost import DecoderShape, HostShape, ViTShape

TOWERS = ("clip_vision_model", "siglip_vision_model")


def check_config(config: LlavaConfig, name: str) -> None:
    """Refuses what cannot be opened before any weight is read. Raises: UnsupportedModel."""
    tower, decoder = config.vision_config.model_type, config.text_config.model_type
    if tower not in TOWERS:
        raise UnsupportedModel(f"{name}: vision tower {tower!r}; known: {', '.join(TOWERS)}")
    if decoder not in DECODERS:
        raise UnsupportedModel(f"{name}: language model {decoder!r}; known: {', '.join(DECODERS)}")
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel(
            f"{name}: vision_feature_layer {config.vision_feature_layer}: needs one layer, not a list"
        )
    if config.vision_feature_select_strategy != "full" and tower != "clip_vision_model":
        raise UnsupportedModel(f'{name}: feature selection "default" drops a patch of a tower without CLS; use "full"')


class LlavaInputs(Inputs):
    """Pictures of one view, resized and cropped to the tower's own size.

    Args:
        processor: see `Inputs`.
        image_token_id: see `Inputs`.
        grid: of a picture's tokens.
        patch: pixels along a token's side.
        cls: the decoder reads CLS too.
    """

    def __init__(self, processor: Any, image_token_id: int, grid: Grid, patch: int, cls: bool) -> None:
        super().__init__(processor, image_token_id)
        self.grid, self.patch, self.cls = grid, patch, cls

    def framed(self, rgb: np.ndarray) -> Framed:
        """See `Inputs.framed`."""
        frame = self.processor.image_processor([rgb], do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels = frame["pixel_values"][0].permute(1, 2, 0).numpy().astype(np.uint8)
        return one_view(View(pixels, self.grid), self.image_token_id, rgb.shape[:2], self.cls)

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """See `Inputs.refit`."""
        view = resized(picture.views[0], grids[0], self.patch)
        return one_view(view, self.image_token_id, picture.size, self.cls)


class LlavaHost(Host):
    """An HF `LlavaForConditionalGeneration`, run through its own submodules: the model itself is never changed.

    Args:
        model: with weights, on its device.
        processor: its processor.
        text: the text tower beside it, where there is one.
        name: for messages and reports.
        config: the content of config.json, for the fingerprint; None = the model's own.
    Raises:
        UnsupportedModel: a tower, decoder or feature selection that cannot be opened.

    Attributes:
        tower, decoder, text, inputs: the parts that a pass runs.
        cls_stays: "full" feature selection of a tower with CLS: the decoder reads CLS too; protected, not counted.
        ends: token ids that end an answer.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: Any,
        text: TextTower | None = None,
        name: str = "llava",
        config: dict[str, Any] | None = None,
    ) -> None:
        c = model.config
        check_config(c, name)
        self.name, self.model, self.text = name, model.eval(), text
        self.tower = VisionTower(model.model.vision_tower, c.vision_feature_layer)
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        full = c.vision_feature_select_strategy == "full"
        self.cls_stays = full and self.tower.has_cls
        self.inputs = LlavaInputs(processor, c.image_token_index, self.tower.grid, self.tower.patch, self.cls_stays)
        self.grid, self.encoder_depth, self.decoder_depth = self.tower.grid, self.tower.depth, self.decoder.depth
        self.device, self.dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
        self.shape = shape_of(self.tower, model)
        kinds = {"keys", "cls_attention", "received_attention", "last_query", "accumulated_attention"}
        self.signals = frozenset(kinds | ({"text_similarity"} if text else set()))
        ends = model.generation_config.eos_token_id
        ends = self.inputs.tokenizer.eos_token_id if ends is None else ends
        self._beside_question: int | None = None
        self.ends = frozenset([ends] if isinstance(ends, int) else ends)
        self.fingerprint = fingerprint(config or json.loads(model.config.to_json_string()), model)

    def open(self, images: Sequence[Pictures], questions: Sequence[str]) -> Pass:
        """See `Host.open`."""
        return Pass(self, self.inputs.rows(images, questions))

    def pixels(self, pictures: Sequence[np.ndarray], grid: Grid) -> Tensor:
        """Normalised pictures (B, 3, H * patch, W * patch) of a grid, in the model's dtype."""
        height, width = grid[1] * self.tower.patch, grid[2] * self.tower.patch
        views = [View(p, grid) for p in pictures]
        fitting = [v if v.pixels.shape[:2] == (height, width) else resized(v, grid, self.tower.patch) for v in views]
        return self.inputs.pixels(fitting).to(self.device, self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """The projector: (..., C) -> (..., D)."""
        return self.model.model.multi_modal_projector(x)

    def question_tokens(self, n_text: int) -> int:
        """What a question whose prompt has `n_text` text entries is for the text tower, in tokens."""
        if self._beside_question is None:
            self._beside_question = self.inputs.n_text("") - len(self.text.ids(""))
        return max(1, min(self.text.limit, n_text - self._beside_question))

    def no_tokens(self) -> VisualState:
        """The state of a row without a picture."""
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        width = torch.zeros(0, self.shape.vit.dim, dtype=self.dtype, device=self.device)
        return VisualState(width, none.float(), none, none, 0, self.grid, whole=False)


def shape_of(tower: VisionTower, model: LlavaForConditionalGeneration) -> HostShape:
    """The model's sizes, for the cost model."""
    v, t = model.config.vision_config, model.config.text_config
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
        projector=(v.hidden_size, t.hidden_size, t.hidden_size),
        decoder=DecoderShape(
            dim=t.hidden_size,
            mlp=t.intermediate_size,
            layers=t.num_hidden_layers,
            heads=t.num_attention_heads,
            kv_heads=t.num_key_value_heads,
            head_dim=model.model.language_model.layers[0].self_attn.head_dim,
            vocab=model.lm_head.weight.shape[0],
        ),
        bytes_per_value=model.lm_head.weight.element_size(),
    )

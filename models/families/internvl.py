"""InternVL: a tower with layer scale, a 2 x 2 pixel shuffle, an MLP projector, a Qwen or LLaMA decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from foveate.compressors.base import Grid
from foveate.models.decoder import Decoder, check_decoder
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.families.shuffle import ShuffleHost, TiledInputs, folded, in_units, shape_of
from foveate.models.inputs import Film, Framed, Row
from foveate.models.tensors import Tensors, runs
from foveate.models.tower import Tower


class InternVLTower(Tower):
    """Its blocks scale both halves by learned vectors; queries and keys may be normalised; CLS is never read.

    Args:
        tower: `InternVLVisionModel`.
        feature_layer: index into the hidden states that feed the projector; -1 = the tower's output, norm included.
        side: k, patches along a token's side.
    Raises:
        UnsupportedModel: the feature layer is not one block's output.
    """

    has_cls = True

    def __init__(self, tower: nn.Module, feature_layer: int, side: int) -> None:
        config, blocks = tower.config, tower.config.num_hidden_layers
        self.depth = feature_layer % (blocks + 1)
        if self.depth < 1 or not -blocks <= feature_layer <= blocks:
            raise UnsupportedModel(f"vision_feature_layer {feature_layer}: no block's output in a tower of {blocks}")
        self.config, self.embeddings, self.blocks = config, tower.embeddings, tower.encoder.layer[: self.depth]
        self.heads, self.patch, self.side, self.merge = config.num_attention_heads, config.patch_size[0], side, side**2
        self.scale = self.blocks[0].attention.scale
        self.norm_out = tower.layernorm if feature_layer == -1 else nn.Identity()

    def embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """See `Tower.embed`; position embeddings are interpolated where the size is not the tower's own."""
        return self.embeddings(pixels.to(self.embeddings.cls_token.device))

    def attend(self, layer: int, x: Tensor, bias: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """See `Tower.attend`."""
        block = self.blocks[layer]
        part, normed = block.attention, block.layernorm_before(x)
        q, k, v = (
            self._split(part.q_norm(part.q_proj(normed))),
            self._keys(part, normed),
            self._split(part.v_proj(normed)),
        )
        mask = None if bias is None else bias.to(x.dtype)[:, None, None, :]
        if self.config._attn_implementation == "eager":
            logits = q @ k.transpose(-1, -2) * self.scale
            mixed = (logits if mask is None else logits + mask).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return x + block.lambda_1 * part.projection_layer(mixed.transpose(1, 2).flatten(2)), q, k

    def _queries(self, part: nn.Module, normed: Tensor) -> Tensor:
        return self._split(part.q_norm(part.q_proj(normed)))

    def _keys(self, part: nn.Module, normed: Tensor) -> Tensor:
        return self._split(part.k_norm(part.k_proj(normed)))

    def _split(self, projected: Tensor) -> Tensor:
        """(b, m, H * e) -> (b, H, m, e)."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """See `Tower.mlp`."""
        block = self.blocks[layer]
        return x + block.lambda_2 * block.mlp(block.layernorm_after(x))

    def queries_keys(self, layer: int, x: Tensor, rows: int, grid: Grid) -> tuple[Tensor | None, Tensor]:
        """See `Tower.queries_keys`."""
        block = self.blocks[layer]
        part, normed = block.attention, block.layernorm_before(x)
        return self._queries(part, normed[:, :rows]) if rows else None, self._keys(part, normed)

    def tokens(self, x: Tensor, grid: Grid) -> Tensor:
        """See `Tower.tokens`."""
        return in_units(self.norm_out(x), grid, self.side)

    def folded(self, kind: str, value: Tensor, grid: Grid) -> Tensor:
        """See `Tower.folded`."""
        return folded(kind, value, grid, self.side)


class InternVLTensors(Tensors):
    """Pixels (views of all pictures, 3, H, W); the prompt says how many views each picture has."""

    overview = -1

    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """See `Tensors.of`."""
        return {"pixel_values": self.inputs.pixels([unit for row in rows for view in row.views for unit in view.units])}

    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """See `Tensors.pictures`; a picture's own size is not known."""
        values, (_, h, w) = self.tensor(given, "pixel_values", 4), self.inputs.grid
        size = (h * self.inputs.unit, w * self.inputs.unit)
        if tuple(values.shape[1:]) != (3, *size):
            raise BadInput(f"pixel_values: views of {tuple(values.shape[1:])}, the model's are {(3, *size)}")
        counts = [[-(-len(run) // (h * w)) for run in runs(prompt, self.token)] for prompt in prompts]
        if sum(map(sum, counts)) != len(values):
            raise BadInput(f"pixel_values: {len(values)} views, the prompts show {sum(map(sum, counts))}")
        views = iter(self.whole(values))
        return [
            [self.inputs.told(*self.inputs.written([next(views) for _ in range(n)]), size) for n in each]
            for each in counts
        ]


class InternVLInputs(TiledInputs):
    """Tiles of the arrangement whose shape is nearest to the picture's, then the whole picture as one more.

    Args:
        processor, image_token_id, side, patch: see `TiledInputs`.
    """

    tensors = InternVLTensors

    def __init__(self, processor: Any, image_token_id: int, side: int, patch: int) -> None:
        size = processor.image_processor.size
        words = processor.tokenizer
        video = getattr(words, "video_token", None) or "<video>"
        super().__init__(processor, image_token_id, (size["height"], size["width"]), side, patch, video)
        self.start, self.end = words.start_image_token, words.end_image_token

    def film_text(self, film: Film, run: str) -> str:
        """See `TiledInputs.film_text`: frames by number."""
        frames = range(1, len(film.seconds) + 1)
        return "\n".join(f"Frame{frame}: {self.start}{run}{self.end}" for frame in frames)

    def cut(self, rgb: np.ndarray) -> tuple[list[np.ndarray], str]:
        """See `TiledInputs.cut`."""
        settings = {"crop_to_patches": True, "do_rescale": False, "do_normalize": False}  # the processor's own default
        done = self.processor.image_processor([rgb], input_data_format="channels_last", **settings)
        views = [np.asarray(each).transpose(1, 2, 0) for each in done["pixel_values"]]
        return self.written(views)

    def written(self, views: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
        """Pixels of a picture's views, with the text in the picture's place."""
        n = self.grid[1] * self.grid[2]
        return views, f"{self.start}{self.image_token * (n * len(views))}{self.end}"


class InternVLHost(ShuffleHost):
    """An HF `InternVLForConditionalGeneration`; see `Host`."""

    model_class = InternVLForConditionalGeneration

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        check_decoder(config, name)
        vision, layer = config.vision_config, config.vision_feature_layer
        if vision.model_type != "internvl_vision":
            raise UnsupportedModel(f"{name}: vision tower {vision.model_type!r}; known: internvl_vision")
        if not isinstance(layer, int):
            raise UnsupportedModel(f"{name}: vision_feature_layer {layer}: needs one layer, not a list")
        if config.vision_feature_select_strategy != "default":
            raise UnsupportedModel(f'{name}: the pixel shuffle has no place for CLS; needs feature selection "default"')
        side = round(1 / config.downsample_ratio)
        if side < 1 or abs(side * config.downsample_ratio - 1) > 1e-6:
            raise UnsupportedModel(f"{name}: downsample_ratio {config.downsample_ratio} is not one over a whole number")
        for what in ("image_size", "patch_size"):
            if len(set(getattr(vision, what))) > 1:
                raise UnsupportedModel(f"{name}: {what} {list(getattr(vision, what))}: needs squares")
        if vision.image_size[0] // vision.patch_size[0] % side:
            raise UnsupportedModel(
                f"{name}: {side} x {side} patches a token do not divide views of {vision.image_size}"
            )

    def parts(self) -> None:
        """See `Host.parts`."""
        c, core = self.model.config, self.model.model
        side = round(1 / c.downsample_ratio)
        self.tower = InternVLTower(core.vision_tower, c.vision_feature_layer, side)
        self.decoder = Decoder(core.language_model, self.model.lm_head)
        along = c.vision_config.image_size[0] // self.tower.patch // side
        self.grid, dim = (1, along, along), c.text_config.hidden_size
        self.shape = shape_of(self.tower, c.vision_config, self.decoder, (dim, dim))

    def inputs_of(self, processor: Any) -> InternVLInputs:
        """See `Host.inputs_of`."""
        token = self.model.config.image_token_id
        return self._settle(InternVLInputs(processor, token, self.tower.side, self.tower.patch))

    def project(self, x: Tensor) -> Tensor:
        """See `Host.project`."""
        return self.model.model.multi_modal_projector(x)

"""CLIP and SigLIP towers, opened."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.compressors.base import Grid
from foveate.models.errors import UnsupportedModel
from foveate.models.tower import Tower


class VisionTower(Tower):
    """A CLIP or SigLIP tower: a token is a patch, blocks see tokens only, so reductions may act inside.

    Args:
        tower: `CLIPVisionModel` or `SiglipVisionModel`, or a module with the same parts.
        feature_layer: index into the hidden states that feed the projector; blocks behind it are never run.
    Raises:
        UnsupportedModel: the feature layer is not one block's output.

    Attributes:
        grid: of a picture of the tower's own size.
    """

    def __init__(self, tower: nn.Module, feature_layer: int) -> None:
        config = tower.config
        self.depth = feature_layer % (config.num_hidden_layers + 1)
        blocks = config.num_hidden_layers
        if self.depth < 1 or not -blocks <= feature_layer <= blocks:
            raise UnsupportedModel(f"vision_feature_layer {feature_layer}: no block's output in a tower of {blocks}")
        self.config, self.embeddings = config, tower.embeddings
        self.norm_in = getattr(tower, "pre_layrnorm", None) or nn.Identity()
        self.norm_out = tower.post_layernorm
        self.layers = tower.encoder.layers[: self.depth]
        self.has_cls = hasattr(tower.embeddings, "class_embedding")
        self.patch, self.heads = config.patch_size, config.num_attention_heads
        self.scale = self.layers[0].self_attn.scale
        side = config.image_size // config.patch_size
        self.grid: Grid = (1, side, side)

    def embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """See `Tower.embed`; position embeddings are interpolated where the size is not the tower's own."""
        weight = self.embeddings.patch_embedding.weight
        return self.norm_in(self.embeddings(pixels.to(weight.device), interpolate_pos_encoding=True))

    def attend(self, layer: int, x: Tensor, bias: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """See `Tower.attend`."""
        block = self.layers[layer]
        part = block.self_attn
        normed = block.layer_norm1(x)
        q, k, v = (self.split(p(normed)) for p in (part.q_proj, part.k_proj, part.v_proj))
        mask = None if bias is None else bias.to(x.dtype)[:, None, None, :]
        if self.config._attn_implementation == "eager":
            logits = q @ k.transpose(-1, -2) * part.scale
            mixed = (logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32).to(x.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=part.scale)
        return x + part.out_proj(mixed.transpose(1, 2).flatten(2)), q, k

    def split(self, projected: Tensor) -> Tensor:
        """(b, m, H * e) -> (b, H, m, e)."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """See `Tower.mlp`."""
        block = self.layers[layer]
        return x + block.mlp(block.layer_norm2(x))

    def queries_keys(self, layer: int, x: Tensor, rows: int, grid: Grid) -> tuple[Tensor | None, Tensor]:
        """See `Tower.queries_keys`."""
        block = self.layers[layer]
        normed = block.layer_norm1(x)
        q = self.split(block.self_attn.q_proj(normed[:, :rows])) if rows else None
        return q, self.split(block.self_attn.k_proj(normed))

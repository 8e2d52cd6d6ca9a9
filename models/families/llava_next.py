"""LLaVA-NeXT (1.6): tiles and a view of all, a CLIP tower, an MLP projector, a LLaMA, Mistral or Qwen2 decoder."""

from __future__ import annotations

from typing import Any

from transformers import LlavaNextForConditionalGeneration

from foveate.models.errors import UnsupportedModel
from foveate.models.families.anyres import AnyResHost, AnyResInputs


class LlavaNextHost(AnyResHost):
    """An HF `LlavaNextForConditionalGeneration`; see `Host` and `AnyResHost`.

    Every picture of a row is cut into tiles. The prompt shows the picture's view of all, then the map of its tiles row
    by row, a newline behind each row.
    """

    model_class = LlavaNextForConditionalGeneration

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        super().check(config, name)
        wanted = "default" if config.vision_config.model_type == "clip_vision_model" else "full"
        if config.vision_feature_select_strategy != wanted:
            raise UnsupportedModel(
                f"{name}: feature selection {config.vision_feature_select_strategy!r} of a "
                f"{config.vision_config.model_type} leaves no square of patches; use {wanted!r}"
            )

    def inputs_of(self, processor: Any) -> AnyResInputs:
        """See `Host.inputs_of`."""
        return self.tiled(processor)

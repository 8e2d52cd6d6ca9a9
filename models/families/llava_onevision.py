"""LLaVA-OneVision: tiles and a view of all through a SigLIP tower, an MLP projector, a Qwen2 decoder; videos pooled."""

from __future__ import annotations

from typing import Any

from transformers import LlavaOnevisionForConditionalGeneration

from foveate.models.errors import UnsupportedModel
from foveate.models.families.anyres import AnyResHost, AnyResInputs

LIMIT = "anyres_max_"


class LlavaOnevisionHost(AnyResHost):
    """An HF `LlavaOnevisionForConditionalGeneration`; see `Host` and `AnyResHost`.

    The one picture of a row is cut into tiles as with LLaVA-NeXT. Of several pictures each is one view, padded to a
    square, with one newline behind it: so the model was trained, and so its processor does where the pictures of a
    prompt come as one list (`apply_chat_template` does that; a flat list of pictures would be tiled). The frames of a
    video are single views whose maps are pooled to half their sides behind the projector, and one newline stands
    behind them all; as with a shrunk map, methods that act before see, and the prompt then shows, single tokens.
    """

    model_class = LlavaOnevisionForConditionalGeneration

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        super().check(config, name)
        tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if tower != "siglip_vision_model" or strategy != "full":
            raise UnsupportedModel(f"{name}: {strategy!r} patches of a {tower}; needs all of a siglip_vision_model")
        limit = str(config.vision_aspect_ratio)
        if not limit.startswith(LIMIT) or not limit[len(LIMIT) :].isdecimal():
            raise UnsupportedModel(f"{name}: vision_aspect_ratio {limit!r}; known: {LIMIT}N")

    def parts(self) -> None:
        """See `Host.parts`."""
        super().parts()
        self.most_tiles = int(self.model.config.vision_aspect_ratio[len(LIMIT) :])

    def inputs_of(self, processor: Any) -> AnyResInputs:
        """See `Host.inputs_of`."""
        return self.tiled(processor, nested=True)

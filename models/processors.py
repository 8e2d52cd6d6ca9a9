"""Processors, with or without torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.video_processing_utils import BaseVideoProcessor

IN_PARTS = ("smolvlm",)
"""Model types whose processor class wants its video part (and a library that spells numbers) even for pictures."""


@dataclass(frozen=True)
class Parts:
    """An image processor, a tokenizer and a chat template: what a host needs of a processor.

    Attributes:
        image_processor, tokenizer: as transformers loads them.
        chat_template: Jinja source; None = the model brings none.
        video_settings: what the model's folder says of its video processor.
    """

    image_processor: Any
    tokenizer: Any
    chat_template: str | None
    video_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str) -> Parts:
        """From a folder or a hub id. Raises: OSError, ValueError."""
        settings, _ = ProcessorMixin.get_processor_dict(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        template = settings.get("chat_template") or tokenizer.chat_template
        if isinstance(template, Mapping):  # named templates
            template = template.get("default")
        images = AutoImageProcessor.from_pretrained(source, backend="pil")
        return cls(images, tokenizer, template, _video_settings(source))

    def apply_chat_template(
        self, talk: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, tokenize: bool = False
    ) -> Any:
        """A conversation as the text that the model reads, or its ids."""
        return self.tokenizer.apply_chat_template(
            list(talk), chat_template=self.chat_template, add_generation_prompt=add_generation_prompt, tokenize=tokenize
        )


def load_processor(source: str, config: PreTrainedConfig) -> Any:
    """An HF processor as `AutoProcessor` gives it; without its video part where that cannot be had.

    Every video processor needs torchvision, and a processor with one does not load without it: pictures then go through
    the same class, told that it has an image processor and a tokenizer only.

    Args:
        source: a folder or hub id.
        config: of the model there.
    Raises:
        OSError, ValueError: as `from_pretrained` does.
    """
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError, AttributeError):
        whole = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(config.model_type, ""), None)
        if whole is None or "video_processor" not in whole.get_attributes():
            raise
    if config.model_type in IN_PARTS:
        return Parts.load(source)
    parts = [part for part in whole.get_attributes() if part != "video_processor"]
    still = type(whole.__name__, (whole,), {"get_attributes": classmethod(lambda cls: parts)})
    processor = still.from_pretrained(source)
    processor.video_settings = _video_settings(source)
    return processor


def _video_settings(source: str) -> dict[str, Any]:
    """What a folder or hub id says of its video processor; nothing where it says nothing."""
    try:
        return BaseVideoProcessor.get_video_processor_dict(source)[0]
    except (OSError, ValueError, ImportError):
        return {}


def video_settings(processor: Any, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a video processor, loaded or not.

    Args:
        processor: as `load_processor` gives it.
        usual: name -> value where nothing is said.
    """
    own, said = getattr(processor, "video_processor", None), getattr(processor, "video_settings", {})
    found = {name: getattr(own, name, None) if own is not None else said.get(name) for name in usual}
    found = {name: usual[name] if value is None else value for name, value in found.items()}
    if "size" in found:  # its bounds once had names of their own
        pixels = {"shortest_edge": said.get("min_pixels"), "longest_edge": said.get("max_pixels")}
        found["size"] = dict(found["size"]) | {edge: value for edge, value in pixels.items() if value is not None}
    return found

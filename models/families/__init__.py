"""Families of models, one file each: how its pictures are framed, its tower runs, its prompt is laid out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveate.models.host import Host

FAMILIES: dict[str, str] = {
    "llava": "llava:LlavaHost",
    "llava_next": "llava_next:LlavaNextHost",
    "llava_onevision": "llava_onevision:LlavaOnevisionHost",
    "qwen2_5_vl": "qwen2_5_vl:Qwen25VLHost",
    "qwen3_vl": "qwen3_vl:Qwen3VLHost",
    "internvl": "internvl:InternVLHost",
    "smolvlm": "smolvlm:SmolVLMHost",
    "idefics3": "smolvlm:SmolVLMHost",
}
"""Model type of a configuration -> "file:class" of its host, imported only when such a model is opened."""


def family(model_type: str) -> type[Host]:
    """The host class of a model type. Raises: KeyError where there is none."""
    module, name = FAMILIES[model_type].split(":")
    return getattr(import_module(f"foveate.models.families.{module}"), name)

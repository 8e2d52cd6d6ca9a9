"""From a training to the package's weights, and back to a training that goes on from them on another machine.

The folder holds what `from_pretrained` loads (bfloat16 safetensors), the text tower, the dense head that only
training needs, and `training.json`, which says how far the recipe came. Optimiser states are not in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, LlavaForConditionalGeneration, LlavaProcessor

from foveate.models.reference.architecture import DECODER_LAYERS, build, build_text_tower, grow
from foveate.models.reference.objectives import Learner
from foveate.models.reference.processor import build_processor, build_tokenizer

HEADS = "training_heads.safetensors"
ABOUT = "training.json"
TOWER = "text_tower"
PROJECTION = "visual_projection.safetensors"


def export(module: Learner, folder: Path, about: dict[str, Any], processor: LlavaProcessor | None = None) -> None:
    """Writes everything; a decoder of half depth is grown first, which changes nothing that it says.

    Args:
        module: as trained; it is left as it is.
        folder: of the weights.
        about: "stage", "step", "seconds" and whatever else a reader should know; plain data.
        processor: that ships with it; default: the one for pictures.
    """
    processor = processor or build_processor()
    tokenizer = processor.tokenizer
    model = module.model if _depth(module.model) == DECODER_LAYERS else grow(module.model, tokenizer)
    sizes = {"pixels": model.config.vision_config.image_size}
    sizes["longest"] = model.config.text_config.max_position_embeddings
    shipped = build(tokenizer, **sizes).to(torch.bfloat16)
    shipped.load_state_dict(model.state_dict())
    shipped.save_pretrained(folder)
    processor.save_pretrained(folder)
    tower = build_text_tower(tokenizer).to(torch.bfloat16)
    tower.load_state_dict(module.tower.state_dict())
    tower.save_pretrained(folder / TOWER)
    _save({"weight": module.visual_projection.weight}, folder / TOWER / PROJECTION)
    heads = {f"dense.{name}": value for name, value in module.dense.state_dict().items()}
    _save(heads | {"temperature": module.temperature}, folder / HEADS)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def restore(folder: Path, layers: dict[str, int]) -> tuple[Learner, dict[str, Any]]:
    """The learner that `export` wrote, and what it says about itself.

    Args:
        folder: of the weights.
        layers: stage -> decoder layers in that stage; the identities that growth put in are taken out again.

    Raises:
        FileNotFoundError: no exported training there.
    """
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(f"no exported training in {folder}")
    about = json.loads((folder / ABOUT).read_text())
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if layers[about["stage"]] < DECODER_LAYERS:
        model = _shrunk(model)
    module = Learner(model, CLIPTextModelWithProjection.from_pretrained(folder / TOWER, dtype=torch.float32))
    heads = load_file(folder / HEADS) | {"visual_projection.weight": load_file(folder / TOWER / PROJECTION)["weight"]}
    wrong = module.load_state_dict(heads, strict=False).unexpected_keys
    if wrong:
        raise ValueError(f"{folder / HEADS}: unknown parts {', '.join(wrong)}")
    return module.train(), about


def _shrunk(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Every second decoder layer: the inverse of `grow`."""
    state = {}
    for name, value in model.state_dict().items():
        head, found, tail = name.partition(".language_model.layers.")
        number, _, rest = tail.partition(".")
        if not found:
            state[name] = value
        elif int(number) % 2 == 0:
            state[f"{head}{found}{int(number) // 2}.{rest}"] = value
    small = build(build_tokenizer(), DECODER_LAYERS // 2)
    small.load_state_dict(state)
    return small


def _depth(model: LlavaForConditionalGeneration) -> int:
    return model.config.text_config.num_hidden_layers


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.detach().to(torch.bfloat16).contiguous() for name, value in tensors.items()}, path)

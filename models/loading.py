"""From a name to a host."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from foveate.models.embedded import embedded
from foveate.models.errors import UnsupportedModel
from foveate.models.families import FAMILIES, family
from foveate.models.host import Host
from foveate.models.learned import attach
from foveate.models.placing import Device, check_placed, device_of, spread
from foveate.models.processors import load_processor
from foveate.models.text_tower import FOLDER, TextTower


def load(model: str | Path, dtype: str, device: Device, learned: str | Path | None = None) -> Host:
    """See `foveate.models.load_host`."""
    path = embedded(model) or Path(model)
    kind = dtype_of(str(model), dtype)
    local = path.is_dir()
    if local and not (path / "config.json").is_file():
        raise UnsupportedModel(f"{path}: no config.json there")
    if not local and (path.is_absolute() or str(model).startswith(".")):
        raise UnsupportedModel(f"{path}: no such folder")
    source = str(path) if local else str(model)
    config, kind_of = read_config(source, source)
    try:
        model_class = kind_of.model_class_of(config)
        placed = {"device_map": device} if spread(device) else {}
        loaded, info = model_class.from_pretrained(source, dtype=kind, output_loading_info=True, **placed)
        processor = load_processor(source, config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModel(f"{source}: cannot be loaded: {_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModel(f"{source}: {len(missing)} weights are missing, first {missing[0]!r}")
    if not placed:
        loaded = loaded.to(torch.device(device))
    check_placed(loaded, source)
    place = device_of(loaded.get_input_embeddings())
    tower = TextTower.load(path / FOLDER, processor.tokenizer, kind, place) if local else None
    raw = json.loads((path / "config.json").read_text()) if local else None
    return attach(kind_of(loaded, processor, tower, str(model), raw), learned)


def dtype_of(model: str, dtype: str) -> torch.dtype:
    """torch's dtype of that name. Raises: UnsupportedModel, naming the model, where it is none for weights."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise UnsupportedModel(f"{model}: dtype {dtype!r} is no floating-point dtype of torch")
    return kind


def read_config(source: str, name: str) -> tuple[PreTrainedConfig, type[Host]]:
    """A configuration and the class of its host, which can open it.

    Args:
        source: a folder, a file or a hub id.
        name: of the model, for what its family refuses.
    Raises:
        UnsupportedModel: no usable configuration, or a model that no host here can open.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"{source}: no usable config: {_line(error)}") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnsupportedModel(f"{source}: model type {config.model_type!r} has no host here; known: {known}")
    kind = family(config.model_type)
    kind.check(config, name)
    return config, kind


def _line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

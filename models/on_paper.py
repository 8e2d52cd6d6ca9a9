"""Hosts of configurations alone: what a model would cost on pictures of given sizes, with no weight read.

With random weights such a host runs too, which tells how long a model of that shape takes.

The model is built on the meta device and its family lays out blank pictures, so prompts have the layout of a loaded
host. What its image processor and tokenizer would say comes from the folder where they lie beside the configuration;
else the image processor has the settings that the family is published with, and a stand-in counts words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection

from foveate.models.embedded import EMBEDDED, embedded
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.families import FAMILIES, family
from foveate.models.host import Host
from foveate.models.inputs import PromptShape
from foveate.models.loading import dtype_of, read_config
from foveate.models.processors import Parts, load_processor
from foveate.models.text_tower import FOLDER, PROJECTION, TextTower
from foveate.plans.files import CONFIGS
from foveate.plans.plan import near
from foveate.tasks.images import MAX_PIXELS

SHIPPED = CONFIGS / "models"
"""Configurations of published models, one JSON file each."""


def _llava(c: Any) -> Any:
    side = c.vision_config.image_size
    if c.vision_config.model_type == "siglip_vision_model":
        return transformers.SiglipImageProcessorPil(size={"height": side, "width": side})
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _llava_next(c: Any) -> Any:
    side = c.vision_config.image_size
    return transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=c.image_grid_pinpoints,
    )


def _llava_onevision(c: Any) -> Any:
    side = c.vision_config.image_size
    return transformers.LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=c.image_grid_pinpoints
    )


def _qwen(least: int, most: int) -> Callable[[Any], Any]:
    def made(c: Any) -> Any:
        v = c.vision_config
        return transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": least, "longest_edge": most},
            patch_size=v.patch_size,
            temporal_patch_size=v.temporal_patch_size,
            merge_size=v.spatial_merge_size,
        )

    return made


def _internvl(c: Any) -> Any:
    height, width = c.vision_config.image_size
    return transformers.GotOcr2ImageProcessorPil(size={"height": height, "width": width}, min_patches=1, max_patches=12)


def _smolvlm(c: Any) -> Any:
    kind = (
        transformers.SmolVLMImageProcessorPil if c.model_type == "smolvlm" else transformers.Idefics3ImageProcessorPil
    )
    edge = c.vision_config.image_size
    return kind(size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge})


PUBLISHED: dict[str, Callable[[Any], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen(3_136, 12_845_056),
    "qwen3_vl": _qwen(65_536, 16_777_216),
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "idefics3": _smolvlm,
}
"""Model type -> its image processor as the family is published, from a configuration."""


class StandIn:
    """Stands where a tokenizer is missing: one id for each word, sign, marker in angle brackets, or run of line breaks.

    Args:
        image_token_id: of the marker of pictures.
    """

    bos_token, eos_token_id = None, -1
    start_image_token, end_image_token = "<img>", "</img>"
    image = "<image>"
    pieces = re.compile(r"</?[\w|-]+>|\n+|\w+|[^\w\s]")

    def __init__(self, image_token_id: int) -> None:
        self.image_token_id = image_token_id

    def convert_ids_to_tokens(self, token: int) -> str:
        """The marker of pictures, or a name for another id."""
        return self.image if token == self.image_token_id else f"<{token}>"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Ids: the marker's own, one other for all else."""
        other = 0 if self.image_token_id else 1
        return {"input_ids": [self.image_token_id if p == self.image else other for p in self.pieces.findall(text)]}


def paper_host(model: str | Path, dtype: str | None = None) -> Host:
    """A host that can be asked what it would cost: it has a configuration, and no weights.

    Args:
        model: "reference" or "reference-video", a folder with a config.json, such a file, the name of a shipped one
            ("llava-1.5-7b"), or a hub id, of which the small files are fetched.
        dtype: of the weights, for the bytes of the cache; None = the configuration's own.
    Raises:
        UnsupportedModel: nothing there, a model that no host here can open, or no such dtype.
    """
    path = None if is_hub_id(model) else config_path(model)
    config, kind = read_config(str(path or model), str(model))
    if dtype is not None:
        config.dtype = dtype_of(str(model), dtype)
    folder = path if path and path.is_dir() else path.parent if path and path.name == "config.json" else None
    try:
        processor = load_processor(str(model), config) if path is None else _processor(folder, config)
        beside = folder is not None and (folder / FOLDER).is_dir()
        text = _text_tower(folder / FOLDER, processor.tokenizer) if beside else None
        host = kind.on_paper(config, str(model), text)
        host.inputs = host.inputs_of(processor)
    except (OSError, ValueError, SafetensorError) as error:
        raise UnsupportedModel(f"{path or model}: {' '.join(str(error).split())}") from error
    return host


def is_hub_id(model: str | Path) -> bool:
    """Whether a model's name is "owner/name", and no file or folder of that name is there."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(model)) is not None and not Path(model).exists()


def family_hosts() -> dict[str, Host]:
    """One host on paper for each family, under the model types that it opens; behind the reference model."""
    types: dict[str, list[str]] = {}
    for model_type, target in FAMILIES.items():
        types.setdefault(target, []).append(model_type)
    found = {}
    for path in shipped_models().values():
        target = FAMILIES[json.loads(path.read_text(encoding="utf-8"))["model_type"]]
        if target in types:
            found[", ".join(types[target])] = path.stem
            del types[target]
    return {"reference": paper_host("reference")} | {names: paper_host(found[names]) for names in sorted(found)}


def random_host(config: Any, name: str, dtype: torch.dtype, device: str, seed: int = 0) -> Host:
    """A host that runs, with weights drawn at random on the device: for times and memory, its answers mean nothing.

    Args:
        config: of a family here, as `AutoConfig` gives it.
        name: for messages and reports.
        dtype: of the weights.
        device: as torch writes it.
        seed: of the weights.
    Raises:
        UnsupportedModel: a model that no host here can open.
    """
    kind = family(config.model_type)
    kind.check(config, name)
    torch.manual_seed(seed)
    with torch.device(device):
        model = kind.model_class_of(config)._from_config(config, dtype=dtype)
    return kind(model, _processor(None, config), name=name)


def config_path(model: str | Path) -> Path:
    """The folder or file of a configuration. Raises: UnsupportedModel, listing near names."""
    path = embedded(model) or Path(model)
    if path.is_file() or (path / "config.json").is_file():
        return path
    shipped = shipped_models()
    if str(model) in shipped:
        return shipped[str(model)]
    if path.exists() or len(path.parts) > 1:
        raise UnsupportedModel(f"{path}: no config.json there")
    raise UnsupportedModel(f"no model {str(model)!r}; near: {near(model, [*EMBEDDED, *shipped])}")


def shipped_models() -> dict[str, Path]:
    """Name -> file of the shipped configurations, in alphabetical order."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}


def picture_shape(host: Host, sizes: Sequence[tuple[int, int]], n_text: int) -> PromptShape:
    """The shape of a prompt with pictures of these sizes, laid out by the family's own code.

    Args:
        host: loaded, or on paper.
        sizes: (width, height) of each picture in pixels; none = one of the host's usual size.
        n_text: words beside the pictures and beside the markers that these bring along.
    Raises:
        BadInput: a size out of range, or a picture that the family does not take.
    """
    if not sizes:
        return host.prompt_shape(n_text)
    for width, height in sizes:
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise BadInput(f"a picture of {width}x{height}: needs at least 1x1 and at most {MAX_PIXELS} pixels")
    row = host.inputs.row([np.zeros((height, width, 3), np.uint8) for width, height in sizes], "", 0)
    words = len(host.inputs.prompt("", 0, len(sizes))[1]) - len(sizes)
    return replace(row.shape, n_text=row.shape.n_text - words + n_text, phrases=None)


def _processor(folder: Path | None, config: Any) -> Any:
    """The folder's processor; what it lacks is stood in for."""
    if folder is not None and (folder / "tokenizer.json").is_file():
        return load_processor(str(folder), config)
    token = getattr(config, "image_token_id", None) or config.image_token_index
    made = _published(folder, config)
    return Parts(made, StandIn(token), None)


def _published(folder: Path | None, config: Any) -> Any:
    """The image processor of the folder, or else of the family."""
    if folder is not None:
        whole = folder / "processor_config.json"
        if (folder / "preprocessor_config.json").is_file() or (
            whole.is_file() and "image_processor" in json.loads(whole.read_text(encoding="utf-8"))
        ):
            return AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    return PUBLISHED[config.model_type](config)


def _text_tower(folder: Path, tokenizer: Any) -> TextTower:
    """The text tower's sizes; of its projection the file's head is read, which names the shape."""
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder))
    with safe_open(folder / PROJECTION, "pt") as file:
        size = file.get_slice("weight").get_shape()
    return TextTower(model, torch.empty(size, device="meta"), tokenizer)

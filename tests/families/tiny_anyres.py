"""Tiny random LLaVA-NeXT and LLaVA-OneVision models, built from their configs and saved as a user would have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_words import CHAT, word_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

NEXT, ONEVISION = "llava_next", "llava_onevision"
TILE = {NEXT: 32, ONEVISION: 22}  # pixels; 22 leaves 2 over, as OneVision's 384 do with patches of 14
PATCH = {NEXT: 8, ONEVISION: 4}
SIDE = {family: TILE[family] // PATCH[family] for family in TILE}  # 4 and 5
PINPOINTS = {
    NEXT: [[a * 32, b * 32] for a, b in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))],
    ONEVISION: [[a * 22, b * 22] for a in range(1, 5) for b in range(1, 5)],
}
MOST_TILES = 4  # of OneVision's map before it is shrunk
IMAGE, VIDEO, END = 4, 5, 3


class StillProcessor(LlavaOnevisionProcessor):
    """OneVision's processor without its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Its parts, in the order of `__init__`."""
        return ["image_processor", "tokenizer"]


StillProcessor.__name__ = "LlavaOnevisionProcessor"  # what it writes into processor_config.json


def processor(family: str):
    """The family's HF processor, image processor pinned to the class that works without torchvision."""
    size = {"height": TILE[family], "width": TILE[family]}
    common = {"tokenizer": word_tokenizer(["<image>", "<video>"]), "chat_template": CHAT}
    if family == ONEVISION:
        image = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=PINPOINTS[family])
        rest = {"num_image_tokens": SIDE[family] ** 2, "vision_feature_select_strategy": "full"}
        return StillProcessor(image_processor=image, vision_aspect_ratio=f"anyres_max_{MOST_TILES}", **rest, **common)
    image = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE[family]}, crop_size=size, image_grid_pinpoints=PINPOINTS[family]
    )
    rest = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaNextProcessor(image_processor=image, patch_size=PATCH[family], **rest, **common)


def model(family: str, decoder: str | None = None, seed: int = 0):
    """A random model, wide enough in its weights that attention differs between tokens and answers between inputs."""
    torch.manual_seed(seed)
    tower = CLIPVisionConfig if family == NEXT else SiglipVisionConfig
    vision = tower(
        image_size=TILE[family],
        patch_size=PATCH[family],
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=3,
        **({} if family == NEXT else {"vision_use_head": False}),
    )
    text_class = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
    text = text_class[decoder or ("mistral" if family == NEXT else "qwen2")](
        vocab_size=len(word_tokenizer(["<image>", "<video>"])),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=END,
        **({"sliding_window": None} if decoder in (None, "mistral") and family == NEXT else {}),
    )
    common = {"vision_config": vision, "text_config": text, "image_token_index": IMAGE}
    common["image_grid_pinpoints"] = PINPOINTS[family]
    if family == NEXT:
        made = LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_seq_length=SIDE[family] ** 2))
    else:
        rest = {"video_token_index": VIDEO, "vision_aspect_ratio": f"anyres_max_{MOST_TILES}"}
        made = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**common, **rest))
    with torch.no_grad():
        for name, value in made.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn_like(value) * (0.6 if "embed" in name else 1.2 / value[0].numel() ** 0.5))
            elif name.endswith("image_newline"):
                value.copy_(torch.randn_like(value))
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = END, 0
    return made.eval()


def build(folder: Path, family: str, decoder: str | None = None, seed: int = 0) -> Path:
    """Writes a model and its processor into `folder`; beside a CLIP tower its text tower."""
    model(family, decoder, seed).save_pretrained(folder)
    processor(family).save_pretrained(folder)
    if family == NEXT:
        add_text_tower(folder / "text_tower")
    return folder


def add_text_tower(folder: Path) -> None:
    """A random text tower with the projection that makes the vision tower's tokens comparable with it."""
    config = CLIPTextConfig(
        vocab_size=len(word_tokenizer(["<image>", "<video>"])),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=END,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    save_file({"weight": torch.randn(12, 24)}, folder / "visual_projection.safetensors")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A random picture: coarse squares, so that its parts still differ after resizing."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].copy()

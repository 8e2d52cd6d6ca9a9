"""The reference model's shape: a CLIP-type ViT with CLS, an MLP projector, a LLaMA decoder that dominates the cost,
and a text tower.

The shape mirrors a real LLaVA: the decoder reads the ViT's second-to-last block, CLS is trained by contrast with
captions in the last one, and multi-layer methods have room (six ViT blocks run for the decoder, eight decoder
layers).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

PIXELS, PATCH = 96, 8
GRID = PIXELS // PATCH  # 12 x 12 = 144 visual tokens
VIT = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 7, "num_attention_heads": 3}
DECODER = {"hidden_size": 160, "intermediate_size": 384, "num_attention_heads": 5, "num_key_value_heads": 5}
DECODER_LAYERS = 8
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
JOINT = 64  # width of the space shared by CLS and text


def build(
    tokenizer: PreTrainedTokenizerBase, layers: int = DECODER_LAYERS, pixels: int = PIXELS, longest: int = 1024
) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights.

    Args:
        tokenizer: of its words.
        layers: of the decoder.
        pixels: side of what the ViT sees.
        longest: prompt, in tokens, that the decoder's configuration promises.
    """
    vision = CLIPVisionConfig(image_size=pixels, patch_size=PATCH, hidden_act="gelu", projection_dim=JOINT, **VIT)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        max_position_embeddings=longest,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **DECODER,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(pixels // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model


def build_text_tower(tokenizer: PreTrainedTokenizerBase) -> CLIPTextModelWithProjection:
    """The text tower: questions and captions into the space that `visual_projection` shares with CLS."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        projection_dim=JOINT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TEXT,
    )
    return CLIPTextModelWithProjection(config)


def grow(small: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """A model of full depth that computes what `small` computes: behind each layer an identity (its two output
    matrices are zero).

    Source: block expansion, LLaMA Pro, https://arxiv.org/abs/2401.02415.

    Raises:
        ValueError: `small` does not have half of the full depth.
    """
    have = small.config.text_config.num_hidden_layers
    if have * 2 != DECODER_LAYERS:
        raise ValueError(f"grow: {have} decoder layers, needs {DECODER_LAYERS // 2}")
    state = {}
    for name, value in small.state_dict().items():
        if ".language_model.layers." not in name:
            state[name] = value
            continue
        head, tail = name.split(".layers.")
        number, rest = tail.split(".", 1)
        state[f"{head}.layers.{2 * int(number)}.{rest}"] = value
        silent = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
        state[f"{head}.layers.{2 * int(number) + 1}.{rest}"] = torch.zeros_like(value) if silent else value.clone()
    model = build(tokenizer)
    model.load_state_dict(state)
    return model


def encode(vision: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The ViT: pixels (B, 3, H, W) -> states that feed the projector (B, 1 + patches, 96) and last CLS after its norm
    (B, 96)."""
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    feature = x
    for layer in vision.encoder.layers:
        feature, x = x, layer(x, attention_mask=None)
    return feature, vision.post_layernorm(x[:, 0])

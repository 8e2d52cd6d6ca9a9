"""Tiny random Qwen2.5-VL and Qwen3-VL models, built from their configs and saved as their hubs' folders look."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

PATCH, FACTOR = 4, 8  # 2 x 2 patches are one token
WORDS = "user assistant what is the colour of this thing there red green blue left right one two three ?".split()
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
]
END, VISION_START, VISION_END, IMAGE, VIDEO = 2, 3, 4, 5, 6
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ["what is this ?", "what is the colour of this thing there ?", "left ?", "is the thing red or blue ?"]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIALS[1:7],
        padding_side="left",
        chat_template=CHAT,
    )


def image_processor() -> Qwen2VLImageProcessorPil:
    """From 4 to 64 tokens a picture."""
    size = {"shortest_edge": 4 * FACTOR**2, "longest_edge": 64 * FACTOR**2}
    return Qwen2VLImageProcessorPil(size=size, patch_size=PATCH)


def text_config(**more) -> dict:
    return {
        "vocab_size": len(SPECIALS) + len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": END,
        **more,
    }


TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def qwen2_5(**vision) -> Qwen2_5_VLForConditionalGeneration:
    """Windows of 2 x 2 tokens, blocks 1 and 3 without windows."""
    sizes = {"depth": 4, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "patch_size": PATCH}
    layout = {"window_size": 4 * PATCH, "fullatt_block_indexes": [1, 3], "out_hidden_size": 32}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        vision_config={**sizes, **layout, **vision}, text_config=text_config(rope_parameters=rope), **TOKENS
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3(**vision) -> Qwen3VLForConditionalGeneration:
    """A learned grid of 5 x 5 positions, two deepstack levels, heads wider than the states' share."""
    sizes = {"depth": 4, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "patch_size": PATCH}
    layout = {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2], "out_hidden_size": 32}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        vision_config={**sizes, **layout, **vision},
        text_config=text_config(rope_parameters=rope, head_dim=16),
        **TOKENS,
    )
    return Qwen3VLForConditionalGeneration(config)


MODELS = {"qwen2_5_vl": qwen2_5, "qwen3_vl": qwen3}


class _WithoutVideo:
    """HF's processor insists on a video processor, which needs torchvision; pictures do without one."""

    def check_argument_for_proper_class(self, name, argument):
        return type(argument)


class Processor2_5(_WithoutVideo, Qwen2_5_VLProcessor):
    pass


class Processor3(_WithoutVideo, Qwen3VLProcessor):
    pass


def original_processor(kind):
    """HF's own processor of a family, without its video part."""
    cls = {"qwen2_5_vl": Processor2_5, "qwen3_vl": Processor3}[kind]
    return cls(image_processor(), tokenizer(), None, chat_template=CHAT)


def build(folder, kind, seed=0, **vision):
    """Writes a tiny model with its image processor and tokenizer into `folder`."""
    torch.manual_seed(seed)
    model = MODELS[kind](**vision)
    with torch.no_grad():  # wide enough that attention differs between tokens and answers between inputs
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn_like(value) * (0.6 if "embed_" in name else 1.2 / value[0].numel() ** 0.5))
            elif not name.endswith("bias"):
                value.copy_(1 + 0.2 * torch.randn_like(value))
            else:
                value.copy_(0.1 * torch.randn_like(value))
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def picture(seed, height=40, width=48):
    """Smooth random colours, which survive a resize."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1), dtype=int))[:height, :width].astype(np.uint8)

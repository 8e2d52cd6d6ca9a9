"""Tiny random InternVL, SmolVLM and Idefics3 models, built from their configs and saved as their hubs' folders look."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_words import begun
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm import processing_smolvlm

INTERNVL, SMOLVLM, IDEFICS3 = FAMILIES = ("internvl", "smolvlm", "idefics3")
PATCH = 4
VIEW = {INTERNVL: 32, SMOLVLM: 36, IDEFICS3: 32}  # pixels of a view's side
SIDE = {INTERNVL: 2, SMOLVLM: 3, IDEFICS3: 2}  # patches of a token's side
TOKENS = {family: (VIEW[family] // PATCH // SIDE[family]) ** 2 for family in FAMILIES}  # 16, 9, 16
END = 3
WORDS = "User Assistant : ASSISTANT what is the colour of this thing there red green blue left right one two ?".split()
QUESTIONS = ["what is this ?", "what is the colour of this thing there ?", "left ?", "is the thing red or blue ?"]
MARKER = {INTERNVL: "<IMG_CONTEXT>", SMOLVLM: "<image>", IDEFICS3: "<image>"}
CHAT = (
    "{% for m in messages %}{{ m['role'] | capitalize }}:{% for c in m['content'] %}{% if c['type'] == 'image' %}MARKER"
    "{% elif c['type'] == 'video' %}<video>{% else %} {{ c['text'] }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SPECIALS = {
    INTERNVL: ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    SMOLVLM: ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    + [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)],
    IDEFICS3: ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],  # its other markers are plain words
}
NAMED = {
    INTERNVL: {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    SMOLVLM: {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
    },
    IDEFICS3: {},
}


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Words, line breaks and signs: a marker that is no special token becomes several."""
    specials = ["<pad>", "<s>", "<unk>", "</s>", *SPECIALS[family]]
    words = dict.fromkeys([*specials, *WORDS, "\n", *"<>_-:123", "row", "col", "global", "img"])
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex("[\n<>_:-]"), "isolated")]
    )
    core.add_special_tokens(SPECIALS[family])
    return begun(core, extra_special_tokens=NAMED[family])


class StillInternVLProcessor(InternVLProcessor):
    """InternVL's processor without its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Its parts, in the order of `__init__`."""
        return ["image_processor", "tokenizer"]


class StillSmolVLMProcessor(processing_smolvlm.SmolVLMProcessor):
    """SmolVLM's processor without its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Its parts, in the order of `__init__`."""
        return ["image_processor", "tokenizer"]


StillInternVLProcessor.__name__, StillSmolVLMProcessor.__name__ = "InternVLProcessor", "SmolVLMProcessor"


def processor(family: str, **settings):
    """The family's HF processor, image processor pinned to the class that works without torchvision."""
    words, chat = tokenizer(family), CHAT.replace("MARKER", MARKER[family])
    edge, n = VIEW[family], TOKENS[family]
    if family == INTERNVL:
        tool = GotOcr2ImageProcessorPil(**{"size": {"height": edge, "width": edge}, "max_patches": 4, **settings})
        return StillInternVLProcessor(tool, words, image_seq_length=n, chat_template=chat)
    sizes = {"size": {"longest_edge": 2 * edge}, "max_image_size": {"longest_edge": edge}, **settings}
    if family == IDEFICS3:
        return Idefics3Processor(Idefics3ImageProcessorPil(**sizes), words, image_seq_len=n, chat_template=chat)
    installed, processing_smolvlm.num2words = processing_smolvlm.num2words, str  # asked for, used for video only
    try:
        return StillSmolVLMProcessor(
            SmolVLMImageProcessorPil(**sizes), words, None, image_seq_len=n, chat_template=chat
        )
    finally:
        processing_smolvlm.num2words = installed


def config(family: str, decoder: str = "", **vision):
    """A model's config: a tower of 4 blocks, a decoder of 4 layers."""
    words = tokenizer(family)
    text = {
        "model_type": decoder or ("qwen2" if family == INTERNVL else "llama"),
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": END,
        **({"sliding_window": None} if decoder == "mistral" else {}),
    }
    image = words.convert_tokens_to_ids(MARKER[family])
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 3}
    top = {k: vision.pop(k) for k in ("vision_feature_layer", "vision_feature_select_strategy") if k in vision}
    if family == INTERNVL:
        shape |= {"image_size": [VIEW[family]] * 2, "patch_size": [PATCH] * 2, **vision}
        shape |= {"model_type": "internvl_vision"}
        return InternVLConfig(
            vision_config=shape,
            text_config=text,
            image_token_id=image,
            image_seq_length=TOKENS[family],
            downsample_ratio=1 / SIDE[family],
            tie_word_embeddings=False,
            **top,
        )
    shape |= {"image_size": VIEW[family], "patch_size": PATCH, **vision}
    kind = SmolVLMConfig if family == SMOLVLM else Idefics3Config
    return kind(vision_config=shape, text_config=text, image_token_id=image, scale_factor=SIDE[family])


def model(family: str, seed: int = 0, decoder: str = "", **vision):
    """A model whose answers differ between pictures: weights wide enough, norms and scales that are not all alike."""
    torch.manual_seed(seed)
    kinds = (InternVLForConditionalGeneration, SmolVLMForConditionalGeneration, Idefics3ForConditionalGeneration)
    made = dict(zip(FAMILIES, kinds, strict=True))[family](config(family, decoder, **vision)).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "embed" in name or "cls_token" in name:
                value.copy_(torch.randn_like(value) * 0.6)
            elif value.ndim > 1:
                value.copy_(torch.randn_like(value) * 1.2 / value[0].numel() ** 0.5)
            else:
                value.add_(torch.randn_like(value) * 0.1)
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = END, 0
    return made


def build(folder: Path, family: str, seed: int = 0, decoder: str = "", sizes: dict | None = None, **vision) -> Path:
    """Writes a tiny model and its processor into `folder`."""
    model(family, seed, decoder, **vision).save_pretrained(folder)
    processor(family, **(sizes or {})).save_pretrained(folder)
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"].lower().startswith(family)
    return folder


def picture(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
    """Noise with a large coloured patch: smooth enough to survive resizing, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def hf_inputs(reference, pictures, questions):
    """What the HF processor makes of rows of pictures (one list each) and questions."""
    texts = []
    for images, question in zip(pictures, questions, strict=True):
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
        talk = [{"role": "user", "content": content}]
        texts.append(
            reference.tokenizer.apply_chat_template(
                talk, chat_template=reference.chat_template, add_generation_prompt=True, tokenize=False
            )
        )
    nested = [[Image.fromarray(p) for p in row] for row in pictures]
    flat = [p for row in nested for p in row]
    images = flat if isinstance(reference, InternVLProcessor) else nested
    return reference(images=images, text=texts, return_tensors="pt", padding=True)

"""A tiny random LLaVA, built from its configs, saved, and loaded back as a user would."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_words import CHAT, QUESTIONS, word_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

PIXELS, PATCH = 32, 8  # a grid of 4 x 4


def build(folder, tower="clip", decoder="llama", strategy=None, feature_layer=-2, text_tower=False, chat=CHAT, seed=0):
    """Writes a tiny model and its processor into `folder`."""
    torch.manual_seed(seed)
    words = word_tokenizer(["<image>"])
    strategy = strategy or ("default" if tower == "clip" else "full")
    vision_class, image_class = {
        "clip": (CLIPVisionConfig, CLIPImageProcessorPil),
        "siglip": (SiglipVisionConfig, SiglipImageProcessorPil),
    }[tower]
    vision = vision_class(
        image_size=PIXELS,
        patch_size=PATCH,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=3,
    )
    text_class = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[decoder]
    text = text_class(
        **({"sliding_window": None} if decoder == "mistral" else {}),
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # wide enough that attention differs between tokens and answers between inputs
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn_like(value) * (0.6 if "embed" in name else 1.2 / value[0].numel() ** 0.5))
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    size = {"height": PIXELS, "width": PIXELS}
    crop = {"crop_size": size} if tower == "clip" else {}
    LlavaProcessor(
        image_processor=image_class(size={"shortest_edge": PIXELS} if tower == "clip" else size, **crop),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if tower == "clip" else 0,
        chat_template=chat,
    ).save_pretrained(folder)
    if text_tower:
        add_text_tower(folder / "text_tower", len(words))
    return folder


def add_text_tower(folder, vocabulary):
    from safetensors.torch import save_file

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    save_file({"weight": torch.randn(12, 24)}, folder / "visual_projection.safetensors")


def picture(seed, height=PIXELS, width=PIXELS):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sides(row):
    """Token ids of a row's text before and behind its picture."""
    return row.ids[row.text[row.text < row.first[0]]].tolist(), row.ids[row.text[row.text > row.first[0]]].tolist()


@pytest.fixture(scope="session")
def tiny():
    """Builders and inputs for tests that make models of their own."""
    return SimpleNamespace(
        build=build, picture=picture, questions=QUESTIONS, add_text_tower=add_text_tower, sides=sides
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Key -> folder of a saved model, built once a run."""
    torch.set_num_threads(1)
    made = {}

    def get(**settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            made[key] = build(tmp_path_factory.mktemp("model"), **settings)
        return made[key]

    return get


@pytest.fixture(scope="session")
def hosts(folders):
    """A host of a tiny model, loaded once a run: hosts(tower="clip", ...)."""
    from foveate.models import load_host

    made = {}

    def get(**settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            made[key] = load_host(folders(**settings))
        return made[key]

    return get


@pytest.fixture
def host(hosts):
    """The usual host: CLIP tower, LLaMA decoder, text tower."""
    return hosts(text_tower=True)


@pytest.fixture(scope="module")
def eager(folders):
    """Hidden states and attention maps of the model's own eager run over one row."""

    def run(settings, p, row=0):
        model = AutoModelForImageTextToText.from_pretrained(folders(**settings), attn_implementation="eager")
        record = p.rows[row]
        ids = torch.from_numpy(record.ids)[None]
        with torch.no_grad():
            pixels = p.host.pixels([record.views[0]])
            vision = model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
            text = model(input_ids=ids, pixel_values=pixels, output_attentions=True, output_hidden_states=True)
        return vision, text

    return run


@pytest.fixture
def lessons(tiny):
    """What a learned compressor is taught on here."""
    from noise_lessons import Noise

    return Noise(tiny.questions)


@pytest.fixture
def fresh(folders):
    """A host of its own: a run fixes its weights and gives it networks."""
    from foveate.models import load_host

    return load_host(folders(text_tower=True))

"""The reference model with smaller frames: what videos change, and how its weights get there.

A frame is 48 x 48 pixels and the patches stay as they were, so that a frame has 6 x 6 = 36 tokens and a video of eight
288: twice what a picture costs the decoder, a quarter of eight pictures. Frames stand side by side in the prompt, as
LLaVA-1.5 shows videos; nothing but the place in the sequence says which comes when.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from foveate.models.reference.architecture import DECODER_LAYERS, GRID, PATCH, build
from foveate.models.reference.objectives import Learner
from foveate.models.reference.processor import build_processor, build_tokenizer
from foveate.tasks.questions import FILM_WORDINGS

FRAMES = 8
PIXELS = 48
SIDE = PIXELS // PATCH  # 6: patches along a frame's side
LONGEST = 4096  # tokens that the decoder's configuration promises: 64 frames are 2304
ANSWERS = ("up", "down", "start", "end", "place")  # words that are only ever answers
PLACES = "model.vision_tower.embeddings.position_embedding.weight"


def words() -> tuple[str, ...]:
    """Words of questions about videos, in the order of their ids."""
    text = " ".join(wording for wordings in FILM_WORDINGS.values() for wording in wordings)
    slots = ("first", "last", "before", "after", "come", "go")
    return tuple(dict.fromkeys([*ANSWERS, *slots, *re.findall(r"[a-z]+", re.sub(r"\{.*?\}", " ", text))]))


def tokenizer() -> PreTrainedTokenizerFast:
    """The reference model's, whose spare ids are words of questions about videos."""
    return build_tokenizer(words())


def processor() -> LlavaProcessor:
    """The processor that `AutoProcessor.from_pretrained` gives back."""
    return build_processor(PIXELS, words())


def fresh(layers: int = DECODER_LAYERS) -> LlavaForConditionalGeneration:
    """A model with random weights."""
    return build(tokenizer(), layers, PIXELS, LONGEST)


def shrunk(places: Tensor) -> Tensor:
    """Position embeddings of a picture (1 + 144, C) as those of a frame (1 + 36, C): each the mean of the four whose
    part of the picture it covers."""
    fours = places[1:].unflatten(0, (SIDE, GRID // SIDE, SIDE, GRID // SIDE))
    return torch.cat([places[:1], fours.mean(dim=(1, 3)).flatten(0, 1)])


def adopt(module: Learner) -> Learner:
    """The learner of the reference model, its model exchanged for one that sees small frames with the same weights.

    Raises:
        ValueError: its decoder does not have the full depth.
    """
    have = module.model.config.text_config.num_hidden_layers
    if have != DECODER_LAYERS:
        raise ValueError(f"adopt: {have} decoder layers, needs {DECODER_LAYERS}: finish the reference model first")
    model = fresh()
    state = module.model.state_dict()
    model.load_state_dict(state | {PLACES: shrunk(state[PLACES])})
    module.model = model
    return module

"""What a caller of `generate` handed over, as rows that a host can open; or why the gate leaves it to the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from foveate.models.errors import BadInput
from foveate.models.host import Host
from foveate.models.inputs import Row, as_shown
from foveate.tasks.clip import FRAMES, Clip, VideoError

DEFAULT_NEW_TOKENS = 20
"""What `generate` of transformers takes where neither the call nor the model says."""

NEUTRAL = {
    *(
        "max_length",
        "max_new_tokens",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "use_cache",
        "transformers_version",
    ),
    *("temperature", "top_k", "top_p", "min_p", "typical_p"),  # without sampling they say nothing
}
"""Fields of a generation config that leave greedy decoding what it is, or that are read here."""

NOTHING = {
    **{"num_beams": 1, "num_return_sequences": 1, "num_beam_groups": 1, "min_length": 0, "no_repeat_ngram_size": 0},
    **{"repetition_penalty": 1.0, "length_penalty": 1.0, "diversity_penalty": 0.0, "encoder_repetition_penalty": 1.0},
}
"""Values that say nothing, written out."""

PLAIN = vars(GenerationConfig())
"""Values of a config that nobody has touched."""

MODEL_INPUTS = {"input_ids", "attention_mask"}
"""What every model's `generate` takes; see `models.tensors.Tensors.names` for the rest."""


class Unsupported(ValueError):
    """A request that the gate does not decide on; the model answers it alone, uncompressed."""


@dataclass(frozen=True)
class Request:
    """A batch of rows, each with one question.

    Attributes:
        rows: what the host opens.
        pictures: (H, W, 3) uint8 of each row as the caller gave it, a video, or several: what pixel features are taken
            from.
        prompts: token ids of each row without padding, the picture's own ids among them.
        input_ids: (B, L), left-padded where it was made here: what `generate` gives back in front of the answer.
        max_new_tokens: of the answer.
        pad: id that fills rows which ended earlier.
    """

    rows: list[Row]
    pictures: list[np.ndarray | Clip | list[np.ndarray | Clip]]
    prompts: list[list[int]]
    input_ids: Tensor
    max_new_tokens: int
    pad: int


def from_pictures(host: Host, images: Sequence[Any], questions: Sequence[str], arguments: Mapping[str, Any]) -> Request:
    """A request in pictures and questions.

    Raises:
        BadInput: a picture or a question that cannot be put.
        Unsupported: generation settings beyond greedy decoding.
    """
    rows = host.inputs.rows(images, questions)
    prompts = [row.ids.tolist() for row in rows]
    longest = max(map(len, prompts))
    limit, pad = _settings(host, arguments, longest)
    pictures = [
        [as_shown(one, number) for one in image] if isinstance(image, (list, tuple)) else as_shown(image, number)
        for number, image in enumerate(images)
    ]
    return Request(rows, pictures, prompts, _left_padded(prompts, pad, host.device)[0], limit, pad)


def as_clip(video: Any) -> Clip:
    """A video as a host takes it.

    Args:
        video: a clip, frames (T, H, W, 3) uint8, or a file: `FRAMES` of it at even distances.
    Raises:
        BadInput: none of these, or a file that cannot be used.
    """
    if isinstance(video, Clip):
        return video
    try:
        if isinstance(video, (str, Path)):
            from foveate.tasks.video import frames  # the decoder of videos is slow to import

            return frames(video, FRAMES)
        if isinstance(video, np.ndarray):
            return Clip.of(video)
    except VideoError as error:
        raise BadInput(str(error)) from error
    raise BadInput(f"video: needs a clip, an array (T, H, W, 3) or a file, got {type(video).__name__}")


def as_tensors(host: Host, images: Sequence[Any], questions: Sequence[str]) -> dict[str, Tensor]:
    """What the processor would return for pictures and questions, see `tensors`. Raises: BadInput."""
    return tensors(host, host.inputs.rows(images, questions))


def tensors(host: Host, rows: Sequence[Row]) -> dict[str, Tensor]:
    """What the model's own `generate` takes for rows, left-padded; pixels in the model's dtype."""
    ids, mask = _left_padded([row.ids.tolist() for row in rows], host.inputs.tokenizer.pad_token_id or 0, host.device)
    made = {name: value.to(host.device) for name, value in host.inputs.tensors(host.inputs).of(rows, ids).items()}
    made = {name: value.to(host.dtype) if name.startswith("pixel_values") else value for name, value in made.items()}
    return {"input_ids": ids, "attention_mask": mask, **made}


def _left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, longest) ids and attention mask."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def from_tensors(host: Host, arguments: Mapping[str, Any]) -> Request:
    """A request in what the processor returns: input_ids, attention_mask, pixels and what its family has beside them.

    Pictures and questions are read back from them: pixels exactly, since they were whole numbers before normalisation;
    the question's text as its tokens spell it. A policy sees each picture as the model sees all of it at once.

    Raises:
        Unsupported: what cannot be read back, with the reason; or generation settings beyond greedy decoding.
    """
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        raise Unsupported("input_ids: needs a tensor (B, L)")
    seen = torch.ones_like(ids) if mask is None else mask
    if not isinstance(seen, Tensor) or seen.shape != ids.shape:
        raise Unsupported(f"attention_mask {tuple(getattr(seen, 'shape', ()))} for input_ids {tuple(ids.shape)}")
    limit, pad = _settings(host, arguments, ids.shape[1])
    prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, seen, strict=True)]
    form = host.inputs.tensors(host.inputs)
    try:
        rows = form.rows(prompts, arguments)
    except BadInput as error:
        raise Unsupported(str(error)) from error
    shown = [form.shown(row) for row in rows]
    pictures = [each[0] if len(each) == 1 else each for each in shown]
    return Request(rows, pictures, prompts, ids, limit, pad)


def _settings(host: Host, arguments: Mapping[str, Any], length: int) -> tuple[int, int]:
    """Most new tokens and padding id of a call. Raises: Unsupported where it asks for more than greedy decoding."""
    given = arguments.get("generation_config")
    config = copy.deepcopy(given if given is not None else host.model.generation_config)
    known = {name: value for name, value in arguments.items() if value is not None and name != "generation_config"}
    if "past_key_values" in known:
        raise Unsupported("past_key_values: a cache of an earlier call; the gate reads and compresses whole prompts")
    inputs = MODEL_INPUTS | host.inputs.tensors.names
    other = config.update(**{name: value for name, value in known.items() if name not in inputs})
    if other:
        raise Unsupported(f"argument {min(other)!r} is not one that the gate knows")
    for name, value in vars(config).items():
        off = value is None or value is False or value == PLAIN.get(name) or value == NOTHING.get(name)
        if name not in NEUTRAL and not name.startswith("_") and not off:
            raise Unsupported(f"{name} = {value!r} is more than greedy decoding")
    ends = config.eos_token_id
    if ends is None or {*([ends] if isinstance(ends, int) else ends)} != host.ends:
        raise Unsupported(f"eos_token_id {ends} is not the model's")
    if config.max_new_tokens is not None:
        limit = config.max_new_tokens
    else:
        limit = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - length
    if limit < 1:
        raise Unsupported(f"{limit} new tokens are left to generate")
    return limit, min(host.ends) if config.pad_token_id is None else config.pad_token_id

"""What a caller of `generate` handed over, as rows that a host can open; or why the gate leaves it to the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from foveate.models.families.llava import LlavaHost
from foveate.models.host import Host
from foveate.models.inputs import Inputs, Row, View, as_rgb, one_view

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

MODEL_INPUTS = {"input_ids", "pixel_values", "attention_mask"}


class Unsupported(ValueError):
    """A request that the gate does not decide on; the model answers it alone, uncompressed."""


@dataclass(frozen=True)
class Request:
    """A batch of rows, each with one question.

    Attributes:
        rows: what the host opens.
        pictures: (H, W, 3) uint8 of each row as the caller gave it, or several: what pixel features are taken from.
        prompts: token ids of each row without padding, the picture's own ids among them.
        input_ids: (B, L), left-padded where it was made here: what `generate` gives back in front of the answer.
        max_new_tokens: of the answer.
        pad: id that fills rows which ended earlier.
    """

    rows: list[Row]
    pictures: list[np.ndarray | list[np.ndarray]]
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
        [as_rgb(one, number) for one in image] if isinstance(image, (list, tuple)) else as_rgb(image, number)
        for number, image in enumerate(images)
    ]
    return Request(rows, pictures, prompts, _left_padded(prompts, pad, host.device)[0], limit, pad)


def as_tensors(host: Host, images: Sequence[Any], questions: Sequence[str]) -> dict[str, Tensor] | None:
    """What the processor would return for pictures and questions, see `tensors`. Raises: BadInput."""
    return tensors(host, host.inputs.rows(images, questions))


def tensors(host: Host, rows: Sequence[Row]) -> dict[str, Tensor] | None:
    """What the model's own `generate` takes for rows, left-padded; None for a family of which that is not known."""
    if not isinstance(host, LlavaHost):
        return None
    ids, mask = _left_padded([row.ids.tolist() for row in rows], host.inputs.tokenizer.pad_token_id or 0, host.device)
    pixels = host.pixels([view for row in rows for view in row.views])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def _left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, longest) ids and attention mask."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def from_tensors(host: Host, arguments: Mapping[str, Any]) -> Request:
    """A request in what the processor returns: input_ids, pixel_values, attention_mask.

    Pictures and questions are read back from them: pixels exactly, since they were whole numbers before normalisation;
    the question's text as its tokens spell it.

    Raises:
        Unsupported: anything but one whole picture in each row, or generation settings beyond greedy decoding.
    """
    if not isinstance(host, LlavaHost):
        raise Unsupported("tensors of this family cannot be read back; give images and questions")
    ids = arguments.get("input_ids")
    values = arguments.get("pixel_values")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not isinstance(values, Tensor) or values.ndim != 4:
        raise Unsupported("needs input_ids (B, L) and pixel_values (B, 3, H, W)")
    if len(values) != len(ids):
        raise Unsupported(f"{len(values)} pictures for {len(ids)} rows; the gate decides on one picture a row")
    limit, pad = _settings(host, arguments, ids.shape[1])
    pictures = _pictures(host, values)
    mask = arguments.get("attention_mask")
    seen = torch.ones_like(ids) if mask is None else mask
    if seen.shape != ids.shape:
        raise Unsupported(f"attention_mask {tuple(seen.shape)} for input_ids {tuple(ids.shape)}")
    prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, seen, strict=True)]
    template = _template(host.inputs)
    rows = [_row(host, prompt, picture, template) for prompt, picture in zip(prompts, pictures, strict=True)]
    return Request(rows, pictures, prompts, ids, limit, pad)


def _row(host: LlavaHost, prompt: list[int], picture: np.ndarray, template: tuple[list[int], list[int]]) -> Row:
    """One row of token ids, with the question that they spell."""
    token, width = host.inputs.image_token_id, host.n_visual + int(host.cls_stays)
    places = [at for at, each in enumerate(prompt) if each == token]
    if len(places) != width or places[-1] - places[0] != width - 1:
        raise Unsupported(f"a row has {len(places)} picture tokens; the gate decides on one picture of {width}")
    before, after = prompt[: places[0]], prompt[places[-1] + 1 :]
    text, (lead, tail) = [*before, *after], template
    if text[: len(lead)] == lead and text[len(text) - len(tail) :] == tail and len(text) >= len(lead) + len(tail):
        text = text[len(lead) : len(text) - len(tail)]
    ids = [*before, token, *after]
    framed = one_view(View(picture, host.grid), token, picture.shape[:2], host.cls_stays)
    return host.inputs.laid([framed], host.inputs.text(text), host.inputs.tokenizer.decode(ids), ids)


def _template(inputs: Inputs) -> tuple[list[int], list[int]]:
    """Token ids that every prompt begins and ends with, the picture left out."""
    both = [inputs.prompt(text, 0)[1] for text in ("what", "which of 2 is it")]
    both = [[token for token in ids if token != inputs.image_token_id] for ids in both]
    lead, tail = _shared(*both), _shared(*(ids[::-1] for ids in both))[::-1]
    return lead, tail


def _shared(a: list[int], b: list[int]) -> list[int]:
    """The longest common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def _pictures(host: LlavaHost, values: Tensor) -> list[np.ndarray]:
    """Normalised pixels (B, 3, H, W) back as uint8 (H, W, 3). Raises: Unsupported where they never were that."""
    size = (host.grid[1] * host.tower.patch, host.grid[2] * host.tower.patch)
    if tuple(values.shape[1:]) != (3, *size):
        raise Unsupported(f"pixel_values are {tuple(values.shape[1:])}, the model's pictures are {(3, *size)}")
    how = host.inputs.processor.image_processor
    if not (how.do_normalize and how.do_rescale):
        raise Unsupported("the image processor does not rescale and normalise")
    mean, std = (torch.tensor(v, device=values.device).view(3, 1, 1) for v in (how.image_mean, how.image_std))
    exact = (values.float() * std + mean) / how.rescale_factor
    whole = exact.round().clamp(0, 255)
    precision = (
        torch.finfo(values.dtype).eps * 4 / how.rescale_factor
    )  # a value up to 4 deviations away, as rounded in its dtype
    if not bool(((exact - whole).abs() <= 0.02 + precision).all()):  # NaN fails too
        raise Unsupported("pixel_values are not a normalised 8-bit picture")
    return list(whole.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _settings(host: Host, arguments: Mapping[str, Any], length: int) -> tuple[int, int]:
    """Most new tokens and padding id of a call. Raises: Unsupported where it asks for more than greedy decoding."""
    given = arguments.get("generation_config")
    config = copy.deepcopy(given if given is not None else host.model.generation_config)
    known = {name: value for name, value in arguments.items() if value is not None and name != "generation_config"}
    other = config.update(**{name: value for name, value in known.items() if name not in MODEL_INPUTS})
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

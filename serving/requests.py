"""What a caller of `generate` handed over, as rows that a host can open; or why the gate leaves it to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.models.errors import BadInput
from foveate.models.host import Host
from foveate.models.inputs import Row, as_shown
from foveate.models.sampling import Settings, left_padded, read
from foveate.tasks.clip import FRAMES, Clip, VideoError

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
        settings: how they are answered.
    """

    rows: list[Row]
    pictures: list[np.ndarray | Clip | list[np.ndarray | Clip]]
    prompts: list[list[int]]
    input_ids: Tensor
    settings: Settings


def from_pictures(host: Host, images: Sequence[Any], questions: Sequence[str], arguments: Mapping[str, Any]) -> Request:
    """A request in pictures and questions.

    Raises:
        BadInput: a picture or a question that cannot be put.
        Unsupported: settings that cannot be had behind a compressed cache.
    """
    rows = host.inputs.rows(images, questions)
    prompts = [row.ids.tolist() for row in rows]
    longest = max(map(len, prompts))
    settings = _settings(host, arguments, longest)
    pictures = [
        [as_shown(one, number) for one in image] if isinstance(image, (list, tuple)) else as_shown(image, number)
        for number, image in enumerate(images)
    ]
    return Request(rows, pictures, prompts, left_padded(prompts, settings.pad, host.device)[0], settings)


def asked(max_new_tokens: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a call in words: greedy where nothing else is said, whatever the model's own config says."""
    return {"max_new_tokens": max_new_tokens, "do_sample": False, **settings}


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
    ids, mask = left_padded([row.ids.tolist() for row in rows], host.inputs.tokenizer.pad_token_id or 0, host.device)
    made = {name: value.to(host.device) for name, value in host.inputs.tensors(host.inputs).of(rows, ids).items()}
    made = {name: value.to(host.dtype) if name.startswith("pixel_values") else value for name, value in made.items()}
    return {"input_ids": ids, "attention_mask": mask, **made}


def from_tensors(host: Host, arguments: Mapping[str, Any]) -> Request:
    """A request in what the processor returns: input_ids, attention_mask, pixels and what its family has beside them.

    Pictures and questions are read back from them: pixels exactly, since they were whole numbers before normalisation;
    the question's text as its tokens spell it. A policy sees each picture as the model sees all of it at once.

    Raises:
        Unsupported: what cannot be read back, with the reason; or settings that cannot be followed.
    """
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        raise Unsupported("input_ids: needs a tensor (B, L)")
    seen = torch.ones_like(ids) if mask is None else mask
    if not isinstance(seen, Tensor) or seen.shape != ids.shape:
        raise Unsupported(f"attention_mask {tuple(getattr(seen, 'shape', ()))} for input_ids {tuple(ids.shape)}")
    settings = _settings(host, arguments, ids.shape[1])
    prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, seen, strict=True)]
    form = host.inputs.tensors(host.inputs)
    try:
        rows = form.rows(prompts, arguments)
    except BadInput as error:
        raise Unsupported(str(error)) from error
    shown = [form.shown(row) for row in rows]
    pictures = [each[0] if len(each) == 1 else each for each in shown]
    return Request(rows, pictures, prompts, ids, settings)


def _settings(host: Host, arguments: Mapping[str, Any], length: int) -> Settings:
    """How a call wants its answers. Raises: Unsupported where that cannot be had behind a compressed cache."""
    inputs = MODEL_INPUTS | host.inputs.tensors.names
    try:
        return read(host, {name: value for name, value in arguments.items() if name not in inputs}, length)
    except BadInput as error:
        raise Unsupported(str(error)) from error

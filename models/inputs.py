"""Pictures and questions, made ready: what an HF processor does, in steps that a pass can stop between."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.models.errors import BadInput

PLAIN_PROMPT = "USER: {image}\n{question} ASSISTANT:"
"""Used where a processor brings no chat template."""

Picture = np.ndarray | Image.Image | str | Path


@dataclass(frozen=True)
class Row:
    """One picture with its question.

    Attributes:
        picture: (H, W, 3) uint8 at the model's own size, before normalisation.
        question: as asked.
        prompt: the text that the model sees, one image marker in it.
        before, after: token ids around the picture.
        seed: 63 bits of the SHA-256 of the framed picture and the question.
    """

    picture: np.ndarray
    question: str
    prompt: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    seed: int

    @property
    def n_text(self) -> int:
        """Prompt entries that are text."""
        return len(self.before) + len(self.after)


def as_rgb(picture: Picture, row: int) -> np.ndarray:
    """(H, W, 3) uint8. Raises: BadInput on a file that does not decode or an array that is no picture."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise BadInput(f"image {row}: needs a uint8 array (H, W, 3), got {picture.dtype} {picture.shape}")
        return picture
    try:
        opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
        return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, AttributeError) as error:
        name = picture if isinstance(picture, (str, Path)) else type(picture).__name__
        raise BadInput(f"image {row} ({name}): cannot be decoded: {error}") from error


def seed_of(picture: np.ndarray, question: str) -> int:
    """63 bits of the SHA-256 of shape and pixels of a framed picture, and the question."""
    digest = hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes() + question.encode())
    return int.from_bytes(digest.digest()[:8], "big") >> 1


class Inputs:
    """The processor, in steps.

    Args:
        processor: an HF processor with `image_processor` and `tokenizer`, as `AutoProcessor` loads it.
        image_token_id: the id that stands for the picture in a prompt.
    Raises:
        BadInput: the tokenizer does not know the image token.
    """

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token_id = image_token_id
        self.image_token = self.tokenizer.convert_ids_to_tokens(image_token_id)
        if self.image_token is None:
            raise BadInput(f"the tokenizer has no token for image_token_index {image_token_id}")

    def rows(self, images: Sequence[Picture], questions: Sequence[str]) -> list[Row]:
        """One row per picture and question. Raises: BadInput, naming the row."""
        if len(images) != len(questions) or not images:
            raise BadInput(f"needs as many images as questions, and at least one: {len(images)} and {len(questions)}")
        return [self.row(image, question, i) for i, (image, question) in enumerate(zip(images, questions, strict=True))]

    def row(self, image: Picture, question: str, number: int) -> Row:
        """One row. Raises: BadInput."""
        prompt, before, after = self.prompt(question, number)
        picture = self.framed(as_rgb(image, number))
        return Row(picture, question, prompt, before, after, seed_of(picture, question))

    def asked(self, row: Row, question: str, number: int) -> Row:
        """The same picture with another question. Raises: BadInput."""
        prompt, before, after = self.prompt(question, number)
        return Row(row.picture, question, prompt, before, after, seed_of(row.picture, question))

    def framed(self, rgb: np.ndarray) -> np.ndarray:
        """The picture resized and cropped as the image processor does, still uint8 (H, W, 3)."""
        frame = self.processor.image_processor([rgb], do_rescale=False, do_normalize=False, return_tensors="pt")
        return frame["pixel_values"][0].permute(1, 2, 0).numpy().astype(np.uint8)

    def pixels(self, pictures: Sequence[np.ndarray], height: int, width: int) -> Tensor:
        """(B, 3, height, width) float32, normalised; other sizes are resized first (Pillow's bicubic on uint8)."""
        sized = [p if p.shape[:2] == (height, width) else _resized(p, height, width) for p in pictures]
        done = self.processor.image_processor(sized, do_resize=False, do_center_crop=False, return_tensors="pt")
        return done["pixel_values"].float()

    def prompt(self, question: str, number: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """The text that the model sees, and its token ids before and behind the picture."""
        if not isinstance(question, str):
            raise BadInput(f"question {number}: needs a string, got {type(question).__name__}")
        if self.image_token in question:
            raise BadInput(f"question {number}: contains the image token {self.image_token!r}")
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            talk = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        else:
            text = PLAIN_PROMPT.format(image=self.image_token, question=question)
        ids = self.ids(text)
        if ids.count(self.image_token_id) != 1:
            raise BadInput(f"question {number}: the prompt has {ids.count(self.image_token_id)} image tokens, needs 1")
        at = ids.index(self.image_token_id)
        return text, tuple(ids[:at]), tuple(ids[at + 1 :])

    def n_text(self, question: str) -> int:
        """Text entries of a question's prompt."""
        _, before, after = self.prompt(question, 0)
        return len(before) + len(after)

    def ids(self, text: str) -> list[int]:
        """Token ids of a prompt; a template that already wrote the first special token gets no second one."""
        bos = self.tokenizer.bos_token
        special = not (bos is not None and text.startswith(bos))
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def answer_ids(self, row: Row, answer: str) -> list[int]:
        """Token ids of an answer as the model would write it behind this prompt, without the end token.

        The answer is read in place, since many tokenizers spell a word differently after a space; a space goes between
        unless the prompt ends with one or with a special token.
        """
        text = row.prompt
        joined = text[-1:].isspace() or any(text.endswith(s) for s in self.tokenizer.all_special_tokens)
        whole, prompt = self.ids(text + ("" if joined else " ") + answer), self.ids(text)
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return self.tokenizer(answer, add_special_tokens=False)["input_ids"]

    def text(self, ids: Sequence[int]) -> str:
        """Generated ids as text, special tokens left out, without outer white space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (B, longest) int64, right-padded with 0, and (B,) lengths."""
    length = torch.tensor([len(r) for r in rows], device=device)
    out = torch.zeros(len(rows), int(length.max()), dtype=torch.long, device=device)
    for line, ids in zip(out, rows, strict=True):
        line[: len(ids)] = torch.tensor(ids, dtype=torch.long, device=device)
    return out, length

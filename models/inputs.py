"""Pictures, videos and questions, made ready: what an HF processor does, in steps that a pass can stop between."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.boxes import WHOLE, Box
from foveate.models.errors import BadInput, HostError
from foveate.models.rows import CLS, NEWLINE, TEXT, Film, FilmWords, Framed, PromptShape, Row, View, extent
from foveate.tasks.clip import Clip, VideoError, middles
from foveate.tasks.images import PictureError, open_picture

if TYPE_CHECKING:
    from foveate.models.text_tower import TextTower

__all__ = [  # some stand in a file of their own
    "CLS",
    "Film",
    "Framed",
    "Inputs",
    "NEWLINE",
    "Picture",
    "Pictures",
    "PromptShape",
    "Row",
    "TEXT",
    "View",
    "as_rgb",
    "extent",
    "one_view",
    "padded",
    "resized",
    "seed_of",
]

PLAIN_PROMPT = "USER: {image}\n{question} ASSISTANT:"
"""Used where a processor brings no chat template; several pictures stand side by side."""

Picture = np.ndarray | Image.Image | str | Path
Pictures = Picture | Clip | Sequence[Picture | Clip]
"""What one row shows: a picture or a video, or several in the order of the prompt; an array of four axes is a video."""


def as_rgb(picture: Picture, row: int) -> np.ndarray:
    """(H, W, 3) uint8. Raises: BadInput on a file that does not decode or an array that is no picture."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise BadInput(f"image {row}: needs a uint8 array (H, W, 3), got {picture.dtype} {picture.shape}")
        return picture
    try:
        if isinstance(picture, (str, Path)):
            return open_picture(picture)
        return np.asarray(picture.convert("RGB"))
    except PictureError as error:
        raise BadInput(f"row {row}: {error}") from error
    except (OSError, SyntaxError, ValueError, AttributeError) as error:
        raise BadInput(f"image {row} ({type(picture).__name__}): cannot be decoded: {error}") from error


def as_shown(one: Picture | Clip, row: int) -> np.ndarray | Clip:
    """A picture (H, W, 3) uint8, or a video. Raises: BadInput."""
    try:
        one = Clip.of(one) if isinstance(one, np.ndarray) and one.ndim == 4 else one
    except VideoError as error:
        raise BadInput(f"row {row}: {error}") from error
    return one if isinstance(one, Clip) else as_rgb(one, row)


def seed_of(views: Sequence[View], question: str) -> int:
    """63 bits of the SHA-256 of shape and pixels of framed views, and the question."""
    digest = hashlib.sha256()
    for view in views:
        digest.update(repr(view.pixels.shape).encode() + np.ascontiguousarray(view.pixels).tobytes())
    digest.update(question.encode())
    return int.from_bytes(digest.digest()[:8], "big") >> 1


class Inputs(ABC):
    """The processor, in steps. A family says how it frames a picture (`framed`) and where entries stand (`places`).

    Args:
        processor: an HF processor with `image_processor` and `tokenizer`, as `AutoProcessor` loads it.
        image_token_id: the id that marks a picture in a prompt.
        video_token_id: the id that marks a video; None = the image token does, where videos can be shown at all.
    Raises:
        BadInput: the tokenizer does not know the image token.

    Attributes:
        beside: the text tower beside the model, which tells what a question's phrases cost.
        video_text: what a chat template writes for a video where no token of its own marks one.
    """

    beside: TextTower | None = None
    video_text: str | None = None

    def __init__(self, processor: Any, image_token_id: int, video_token_id: int | None = None) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token_id = image_token_id
        self.image_token = self.tokenizer.convert_ids_to_tokens(image_token_id)
        if self.image_token is None:
            raise BadInput(f"the tokenizer has no token for image_token_index {image_token_id}")
        video_token = None if video_token_id is None else self.tokenizer.convert_ids_to_tokens(video_token_id)
        self.video_token_id = image_token_id if video_token is None else video_token_id
        self.video_token = self.image_token if video_token is None else video_token

    # -- what a family says ------------------------------------------------------------------------------------------

    @abstractmethod
    def framed(self, rgb: np.ndarray) -> Framed:
        """A picture (H, W, 3) uint8 as views, and its prompt entries."""

    def filmed(self, clip: Clip) -> Framed:
        """A video as one view, and its prompt entries. Raises: BadInput where the family takes none, or not this."""
        raise BadInput("a video: this model takes pictures only")

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """The picture with its views at other grids, laid out anew. Raises: HostError where the family cannot."""
        raise HostError(f"pictures of this model keep their size; asked for grids {list(grids)}")

    def places(self, view: np.ndarray, position: np.ndarray, pictures: Sequence[Framed]) -> np.ndarray:
        """(S, P) int64 position ids of a whole prompt, given as in `Row`; by default 0, 1, 2 ... with P = 1."""
        return np.arange(len(view))[:, None]

    def boxes(self, picture: Framed) -> list[Box]:
        """Where each of its views lies in a picture; by default all of it."""
        return [WHOLE] * len(picture.views)

    def pixels(self, views: Sequence[View]) -> Tensor:
        """(B, 3, H, W) float32 of views of equal size, normalised by the image processor."""
        pictures = [view.pixels for view in views]
        done = self.processor.image_processor(pictures, do_resize=False, do_center_crop=False, return_tensors="pt")
        return done["pixel_values"].float()

    def normalised(self, views: Sequence[View]) -> Tensor:
        """(B, 3, H, W) float32 of views of equal size, (B, F, 3, H, W) where each has several frames: rescaled and
        normalised as the image processor does it, never resized."""
        how = self.processor.image_processor
        x = torch.from_numpy(np.stack([view.pixels for view in views])).movedim(-1, -3).double()
        x = (x * how.rescale_factor if how.do_rescale else x).float()
        if how.do_normalize:
            mean, std = (torch.tensor(each)[:, None, None] for each in (how.image_mean, how.image_std))
            x = (x - mean) / std
        return x

    # -- rows --------------------------------------------------------------------------------------------------------

    def rows(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Row]:
        """One row for each question and its picture or pictures. Raises: BadInput, naming the row."""
        if len(images) != len(questions) or not len(images):
            raise BadInput(f"needs as many images as questions, and at least one: {len(images)} and {len(questions)}")
        return [self.row(image, question, i) for i, (image, question) in enumerate(zip(images, questions, strict=True))]

    def row(self, image: Pictures, question: str, number: int) -> Row:
        """One row. Raises: BadInput."""
        each = list(image) if isinstance(image, (list, tuple)) else [image]
        if not each:
            raise BadInput(f"image {number}: an empty list; a row needs at least one picture")
        shown = [as_shown(one, number) for one in each]
        prompt, ids = self.prompt(question, number, kinds_of(shown))
        framed = [self.filmed(one) if isinstance(one, Clip) else self.framed(one) for one in shown]
        return self.laid(framed, question, prompt, ids)

    def asked(self, row: Row, question: str, number: int) -> Row:
        """The same pictures with another question. Raises: BadInput."""
        prompt, ids = self.prompt(question, number, [picture.kind for picture in row.pictures])
        return self.laid(row.pictures, question, prompt, ids)

    def relaid(self, row: Row, grids: Sequence[Grid]) -> Row:
        """The row with its views at other grids (None = as it is); the seed stays. Raises: HostError."""
        pictures, at = [], 0
        for picture in row.pictures:
            wanted = tuple(grids[at : at + len(picture.views)])
            at += len(picture.views)
            same = wanted == tuple(view.grid for view in picture.views)
            pictures.append(picture if same else self.refit(fewer(picture, wanted[0][0]), wanted))
        return self.laid(pictures, row.question, row.prompt, self.ids(row.prompt), row.seed)

    def laid(
        self, pictures: Sequence[Framed], question: str, prompt: str, ids: Sequence[int], seed: int | None = None
    ) -> Row:
        """A row from framed pictures and a prompt's ids, each marker replaced by its picture's entries."""
        parts: list[tuple[Sequence[int], np.ndarray, np.ndarray]] = []
        start, first = 0, 0
        marks = [i for i, token in enumerate(ids) if token in (self.image_token_id, self.video_token_id)]
        for mark, picture in zip(marks, pictures, strict=True):
            parts.append(_words(ids[start:mark]))
            parts.append((picture.ids, np.where(picture.view < 0, -1, picture.view + first), picture.position))
            start, first = mark + 1, first + len(picture.views)
        parts.append(_words(ids[start:]))
        whole, view, position = (np.concatenate([np.asarray(p[k], np.int64) for p in parts]) for k in range(3))
        if seed is None:
            seed = seed_of([view for picture in pictures for view in picture.views], question)
        phrases = None if self.beside is None else self.beside.phrase_tokens(question)
        place = self.places(view, position, pictures)
        return Row(tuple(pictures), question, prompt, whole, view, position, place, seed, phrases)

    def prompt(self, question: str, number: int, pictures: int | Sequence[str] = 1) -> tuple[str, list[int]]:
        """The text that the model sees, and its token ids, one marker in it for each picture or video.

        Args:
            question: as asked.
            number: of the row, for messages.
            pictures: how many, or "image" or "video" for each.
        Raises:
            BadInput: a question that cannot be put.
        """
        if not isinstance(question, str):
            raise BadInput(f"question {number}: needs a string, got {type(question).__name__}")
        for kind, token in (("image", self.image_token), ("video", self.video_text or self.video_token)):
            if token in question:
                raise BadInput(f"question {number}: contains the {kind} token {token!r}")
        kinds = ["image"] * pictures if isinstance(pictures, int) else list(pictures)
        token_of = {"image": self.image_token_id, "video": self.video_token_id}
        alike = self.video_token_id == self.image_token_id
        if alike and self.video_text is None:
            kinds = ["image"] * len(kinds)
        if getattr(self.processor, "chat_template", None):
            content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
            talk = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        else:
            shown = "".join(self.image_token if kind == "image" else self.video_token for kind in kinds)
            text = PLAIN_PROMPT.format(image=shown, question=question)
        if alike and "video" in kinds:
            text, kinds = text.replace(self.video_text, self.image_token), ["image"] * len(kinds)
        ids = self.ids(text)
        if [token for token in ids if token in token_of.values()] != [token_of[kind] for kind in kinds]:
            for kind, token in token_of.items():
                if ids.count(token) != kinds.count(kind):
                    found, needs = ids.count(token), kinds.count(kind)
                    raise BadInput(f"question {number}: the prompt has {found} {kind} tokens, needs {needs}")
            raise BadInput(f"question {number}: the template puts pictures and videos in another order")
        return text, ids

    def n_text(self, question: str) -> int:
        """Words of a question's prompt with one picture, the picture's own markers left out."""
        return len(self.prompt(question, 0)[1]) - 1

    # -- text --------------------------------------------------------------------------------------------------------

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


def _words(ids: Sequence[int]) -> tuple[Sequence[int], np.ndarray, np.ndarray]:
    """Ids, views and positions of entries that are text."""
    none = np.full(len(ids), TEXT)
    return ids, none, none


def resized(view: View, grid: Grid, unit: int) -> View:
    """The view at another grid, `unit` pixels to a token's side, by Pillow's bicubic on uint8."""
    return View(scaled(view.pixels, (grid[1] * unit, grid[2] * unit)), grid)


def scaled(pixels: np.ndarray, size: tuple[int, int], by: int = Image.Resampling.BICUBIC) -> np.ndarray:
    """A picture or frames (..., H, W, 3) uint8 at another (height, width), by one of Pillow's filters."""
    if pixels.ndim == 4:
        return np.stack([scaled(frame, size, by) for frame in pixels])
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], by))


def kinds_of(shown: Sequence[np.ndarray | Clip]) -> list[str]:
    """What a chat template calls each."""
    return ["video" if isinstance(one, Clip) else "image" for one in shown]


def one_view(view: View, token: int, size: tuple[int, int], cls: bool = False, film: Film | None = None) -> Framed:
    """A picture of one view whose prompt entries are its tokens in order, behind its CLS where the decoder reads it."""
    position = np.concatenate([np.full(int(cls), CLS), np.arange(view.n)])
    return Framed((view,), (token,) * len(position), np.zeros(len(position), np.int64), position, size, film=film)


def fewer(picture: Framed, frames: int) -> Framed:
    """A video with some frames of its grid alone, at even distances, not yet laid out anew; a picture as it is."""
    view = picture.views[0]
    if picture.film is None or frames == view.grid[0]:
        return picture
    which = _shown(picture.film, view, frames)
    return replace(
        picture, views=(View(view.pixels[which], (frames, *view.grid[1:])),), film=picture.film.at(which.tolist())
    )


def _shown(film: Film, view: View, frames: int) -> np.ndarray:
    """Which frames of a video stay where so many frames of its grid do."""
    return middles(frames * (len(view.pixels) // view.grid[0]), len(film.seconds))


def in_words(
    tokenizer: Any,
    write: Callable[[Film, str], str],
    marker: str,
    view: View,
    size: tuple[int, int],
    film: Film,
) -> Framed:
    """A video of one view whose prompt entries are words, and one of its tokens in order wherever a marker stands.

    Args:
        tokenizer: of the model.
        write: the text of a film, given what stands for each frame of the grid.
        marker: stands for one token.
        view: the video.
        size: (height, width) as it was given.
        film: its times.
    Raises:
        HostError: markers and tokens do not match.
    """
    t, h, w = view.grid
    short = [write(film.at(_shown(film, view, n)), marker) for n in range(1, t)]
    *some, ids = tokenizer([*short, write(film, marker * (h * w))], add_special_tokens=False)["input_ids"]
    seen = np.asarray(ids) == tokenizer.convert_tokens_to_ids(marker)
    if seen.sum() != view.n:
        raise HostError(f"{int(seen.sum())} markers in a video's text for {view.n} tokens")
    position = np.where(seen, seen.cumsum() - 1, TEXT)
    words = (*(len(each) - n for n, each in enumerate(some, start=1)), len(ids) - view.n)
    layout = FilmWords(words) if t > 1 else None
    return Framed((view,), tuple(ids), np.where(seen, 0, -1), position, size, layout, film=film)


def film_of(clip: Clip) -> Film:
    """A clip's times."""
    return Film(tuple(clip.seconds.tolist()), clip.duration)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (B, longest) int64, right-padded with 0, and (B,) lengths."""
    length = torch.tensor([len(r) for r in rows], device=device)
    out = torch.zeros(len(rows), int(length.max()), dtype=torch.long, device=device)
    for line, ids in zip(out, rows, strict=True):
        line[: len(ids)] = torch.tensor(ids, dtype=torch.long, device=device)
    return out, length

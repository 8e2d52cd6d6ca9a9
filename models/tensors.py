"""What an HF processor hands to a model's `generate`: made from rows, and read back to rows before anything runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate.models.errors import BadInput
from foveate.models.inputs import Framed, Row

if TYPE_CHECKING:
    from foveate.models.inputs import Inputs

WHOLE = 3e-4
"""How far normalised pixels may be from those of an 8-bit picture, beside what their dtype rounds: an image processor
may round once more on the way, and the smallest step between two 8-bit values is fifty times as large."""


class Tensors(ABC):
    """One family's form: a family says how pixels are packed and whose picture is whose, this class finds the rows.

    Reading back is exact or it is refused: pixels were whole numbers before they were normalised, and every entry of
    the prompt must be what the family writes for the picture that stands there.

    Args:
        inputs: of the host.

    Attributes:
        names: tensors that the processor returns beside `input_ids` and `attention_mask`.
        overview: which view of a picture shows all of it.
    """

    names: ClassVar[frozenset[str]] = frozenset({"pixel_values"})
    overview: ClassVar[int] = 0

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.token = inputs, inputs.image_token_id
        self.marks = (inputs.image_token_id, inputs.video_token_id)

    @abstractmethod
    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """What stands beside the ids of some rows, float32 where it is pixels.

        Args:
            rows: as the family frames them, not refitted.
            ids: (B, L), padded.
        """

    @abstractmethod
    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """The pictures of each row, in the order of its prompt.

        Args:
            prompts: token ids of each row without padding.
            given: name -> what was handed over.
        Raises:
            BadInput: a tensor is missing or is not what the family's processor makes; or pictures and prompts differ.
        """

    def rows(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[Row]:
        """The rows that a processor made prompts and tensors of; a question is what its tokens spell.

        Raises:
            BadInput: see `pictures`; or a prompt is not what the family writes for its pictures.
        """
        found, around = [], {}
        for number, (prompt, pictures) in enumerate(zip(prompts, self.pictures(prompts, given), strict=True)):
            if not pictures:
                raise BadInput(f"row {number}: has no picture")
            kinds = tuple(picture.kind for picture in pictures)
            if kinds not in around:
                around[kinds] = self._around(kinds)
            ids = self._marked(prompt, pictures, number)
            question = self._question([token for token in ids if token not in self.marks], *around[kinds])
            row = self.inputs.laid(pictures, question, self.inputs.tokenizer.decode(ids), ids)
            found.append(row)
        return found

    def shown(self, row: Row) -> list[np.ndarray]:
        """(H, W, 3) uint8 of each picture of a row, as the model sees all of it at once; of a video (F, H, W, 3)."""
        return [picture.views[self.overview].pixels for picture in row.pictures]

    # -- for families ------------------------------------------------------------------------------------------------

    def tensor(self, given: Mapping[str, Any], name: str, ndim: int) -> Tensor:
        """A tensor that is needed. Raises: BadInput where there is none, or of another number of axes."""
        value = given.get(name)
        if not isinstance(value, Tensor) or value.ndim != ndim or not value.numel():
            what = f"of {value.ndim} axes" if isinstance(value, Tensor) and value.numel() else "missing"
            raise BadInput(f"{name}: {what}; this model's processor makes it of {ndim}")
        return value

    def whole(self, values: Tensor) -> np.ndarray:
        """Normalised pixels (..., 3, H, W) as uint8 (..., H, W, 3). Raises: BadInput where they never were that."""
        how = self.inputs.processor.image_processor
        scale = float(how.rescale_factor) if how.do_rescale else 1.0
        mean, std = (how.image_mean, how.image_std) if how.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        mean, std = (torch.tensor(v, device=values.device, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))
        wide = values.float()
        pixels = ((wide * std + mean) / scale).round().clamp(0, 255)
        off = (pixels * scale - mean) / std - wide
        if not bool((off.abs() <= WHOLE + torch.finfo(values.dtype).eps * wide.abs()).all()):  # NaN fails too
            raise BadInput("pixel_values: no normalised 8-bit pictures")
        return pixels.to(torch.uint8).movedim(-3, -1).cpu().numpy()

    def mark(self, picture: Framed) -> int:
        """The id that stands for each token of a picture or video."""
        return self.marks[picture.film is not None]

    def dealt(self, prompts: Sequence[Sequence[int]], pictures: Sequence[Framed]) -> list[list[Framed]]:
        """Pictures, and videos, that stand one behind the other: each row takes those whose entries its tokens are.

        Raises:
            BadInput: a row's image tokens are not those of whole pictures, or pictures are left over.
        """
        left = {mark: [picture for picture in pictures if self.mark(picture) == mark][::-1] for mark in self.marks}
        out: list[list[Framed]] = []
        for number, prompt in enumerate(prompts):
            tokens, own, at = [token for token in prompt if token in left], [], 0
            while at < len(tokens):
                mark, n = tokens[at], 0
                if left[mark]:
                    own.append(left[mark].pop())
                    n = own[-1].ids.count(mark)
                if not n or tokens[at : at + n] != [mark] * n:
                    each = [picture.ids.count(self.mark(picture)) for picture in own]
                    raise BadInput(f"row {number}: has {len(tokens)} image tokens, the next pictures have {each}")
                at += n
            out.append(own)
        if any(left.values()):
            shown = sum(map(len, out))
            raise BadInput(f"pixel_values: {len(pictures)} pictures, the prompts show {shown} of them")
        return out

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _marked(self, prompt: Sequence[int], pictures: Sequence[Framed], number: int) -> list[int]:
        """A prompt with one image token in place of each picture's entries. Raises: BadInput."""
        ids, at, prompt = [], 0, list(prompt)
        for which, picture in enumerate(pictures):
            mark = self.mark(picture)
            begin = prompt.index(mark, at) if mark in prompt[at:] else len(prompt)
            begin = max(at, begin - picture.ids.index(mark))
            end = begin + len(picture.ids)
            if tuple(prompt[begin:end]) != picture.ids:
                raise BadInput(
                    f"row {number}: its prompt does not hold picture {which} as this model's processor writes it"
                )
            ids += [*prompt[at:begin], mark]
            at = end
        if any(mark in prompt[at:] for mark in self.marks):
            raise BadInput(f"row {number}: has image tokens behind its last picture")
        return ids + prompt[at:]

    def _around(self, kinds: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids that every prompt of such pictures begins and ends with, image tokens left out."""
        both = [self.inputs.prompt(text, 0, kinds)[1] for text in ("what", "which of 2 is it")]
        a, b = ([token for token in ids if token not in self.marks] for ids in both)
        return _shared(a, b), _shared(a[::-1], b[::-1])[::-1]

    def _question(self, words: list[int], lead: list[int], tail: list[int]) -> str:
        """The question's text; all words' where they are not put as the model's template puts them."""
        inside = words[len(lead) : len(words) - len(tail)]
        return self.inputs.text(inside if [*lead, *inside, *tail] == words else words)


def _shared(a: list[int], b: list[int]) -> list[int]:
    """The longest common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def runs(prompt: Sequence[int], token: int) -> list[np.ndarray]:
    """Places of a token in a prompt, those side by side together."""
    at = np.flatnonzero(np.asarray(prompt) == token)
    return np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []


def apart(values: Sequence[Sequence[Tensor]]) -> Tensor:
    """Lists of pixels (3, H, W) of one size, as long as the longest: (lists, longest, 3, H, W), zeros behind."""
    longest = max(map(len, values))
    out = torch.zeros(len(values), longest, *values[0][0].shape)
    for line, pixels in zip(out, values, strict=True):
        line[: len(pixels)] = torch.stack(list(pixels))
    return out

"""The colour and shape questions of the package easy-vqa, read from its files without importing it."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.tasks.base import IMAGE_SIZE, Sample, Task, Turn, check_address
from foveate.tasks.questions import Ask, word
from foveate.tasks.splits import digest, stream

COLOUR_ANSWERS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPE_ANSWERS = ("circle", "rectangle", "triangle")
SHARES = ("host-train",) * 5 + ("policy-train",) * 2 + ("validation", "calibration")  # of the training part, by number


@lru_cache(maxsize=1)
def _folder() -> Path | None:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "data")
    return path if (path / "train" / "questions.json").is_file() else None


def parse(question: str, answer: str) -> Ask | None:
    """The question in this project's terms; None for yes/no questions, whose wording gives most answers away."""
    named = set(re.findall(r"[a-z]+", question.lower()))
    colour = next((name for name in COLOUR_ANSWERS if name in named), None)
    shape = next((name for name in SHAPE_ANSWERS if name in named), None)
    if answer in SHAPE_ANSWERS:
        return Ask("shape_of", {"colour": colour}, (answer,)) if colour else Ask("shape_of_object", {}, (answer,))
    if answer in COLOUR_ANSWERS:
        answers = (answer, "grey") if answer == "gray" else (answer,)
        return Ask("colour_of", {"shape": shape}, answers) if shape else Ask("colour_of_object", {}, answers)
    return None


@lru_cache(maxsize=2)
def _asks(part: str) -> dict[int, tuple[Ask, ...]]:
    """Picture number -> its questions, each once, for the package's part "train" or "test"."""
    rows = json.loads((_folder() / part / "questions.json").read_text())
    found: dict[int, dict[str, Ask]] = {}
    for question, answer, number in rows:
        ask = parse(question, answer)
        if ask:
            found.setdefault(number, {})[ask.template] = ask
    return {number: tuple(asks.values()) for number, asks in sorted(found.items())}


@lru_cache(maxsize=8)
def _numbers(split: str) -> tuple[int, ...]:
    """The picture numbers of a split."""
    if split == "test":
        return tuple(_asks("test"))
    return tuple(number for number in _asks("train") if SHARES[number % len(SHARES)] == split)


class EasyVQA(Task):
    """One shape on a plain ground. The set is fixed: an index beyond its end starts over in new grain."""

    name = "easy_vqa"
    regimes = ("easy_vqa",)

    def available(self) -> str | None:
        """See `Task.available`."""
        return None if _folder() else "package easy-vqa is not installed"

    def sample(self, split: str, index: int) -> Sample:
        """See `Task.sample`. The package's training pictures feed four splits, its test pictures the test split.

        Raises:
            ValueError: bad split or index, or the package is not installed.
        """
        return self._render(split, index, twin=0)

    def twins(self, sample: Sample, r: int) -> list[Sample]:
        """See `Task.twins`: the picture moved by up to 3 px in new grain, the questions in other words."""
        self.check_twins(sample, r)
        return [self._render(sample.split, sample.index, twin) for twin in range(1, r + 1)]

    def _render(self, split: str, index: int, twin: int) -> Sample:
        check_address(split, index)
        if self.available():
            raise ValueError(f"task {self.name!r} is not usable: {self.available()}")
        numbers, part = _numbers(split), "test" if split == "test" else "train"
        number = numbers[index % len(numbers)]
        key = f"{self.name}/{split}/{index}"
        rng, words = stream(key, "paint", twin), stream(key, "words")
        with Image.open(_folder() / part / "images" / f"{number}.png") as file:
            small = file.convert("RGB")
        shift = (rng.randint(-3, 3), rng.randint(-3, 3)) if twin else (0, 0)
        image = small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        ground = image.getpixel((0, 0))  # the shapes never touch the corner
        moved = Image.new("RGB", image.size, ground)
        moved.paste(image, shift)
        grain = np.random.default_rng(rng.getrandbits(63)).standard_normal(
            (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32
        )
        pixels = np.asarray(moved) + grain * np.float32(rng.choice((0.0, 2.0, 4.0)))
        asks = _asks(part)[number]
        known = {ask.template.split("_")[0]: ask.answers[0] for ask in asks}
        return Sample(
            id=f"{key}~{twin}" if twin else key,
            task=self.name,
            regime=self.regimes[0],
            split=split,
            family=digest([self.name, part, number]),
            index=index,
            image=pixels.clip(0, 255).astype(np.uint8),
            turns=tuple(Turn(word(ask, words.randrange(60) + twin), ask.answers, ask.template) for ask in asks),
            caption=" ".join(["a", *(known[kind] for kind in ("colour", "shape") if kind in known)]),
        )

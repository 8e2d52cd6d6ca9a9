"""Handwritten digits: real 8 x 8 scans, enlarged, coloured and composed."""

from __future__ import annotations

import gzip
import importlib.util
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.tasks.base import IMAGE_SIZE
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import PALETTE, Canvas
from foveate.tasks.scenes import centres
from foveate.tasks.splits import digest, split_of

SIDE = 3  # cells per side of the grid of scattered digits


def _file() -> Path | None:
    """The data file inside scikit-learn's folder; reading it directly spares the import of the package."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans (1797, 8, 8) uint8 with ink 255, and their digits (1797,)."""
    with gzip.open(_file(), "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return (table[:, :64].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), table[:, 64].astype(int)


def legible(images: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Which scans (N, 8, 8) a person reads without effort: (N,) bool.

    At 8 x 8 some scans are blots. Kept are those that lie clearly nearer to the mean of their own digit than to that of
    any other, and that are not mostly ink.
    """
    flat = images.reshape(len(images), -1) / 255.0
    means = np.stack([flat[digits == digit].mean(axis=0) for digit in range(10)])
    gaps = ((flat[:, None] - means[None]) ** 2).sum(axis=2)
    own = gaps[np.arange(len(flat)), digits]
    gaps[np.arange(len(flat)), digits] = np.inf
    return (own < 0.8 * gaps.min(axis=1)) & (flat.mean(axis=1) < 0.4)


@lru_cache(maxsize=8)
def scans_of(split: str) -> dict[int, tuple[int, ...]]:
    """For every digit the numbers of the legible scans that belong to `split`."""
    mine: dict[int, list[int]] = {digit: [] for digit in range(10)}
    clear = legible(*scans())
    for number, digit in enumerate(scans()[1]):
        if clear[number] and split_of(digest(["digit scan", number])) == split:
            mine[int(digit)].append(number)
    return {digit: tuple(numbers) for digit, numbers in mine.items()}


def _outermost(cells: list[int]) -> dict[str, int]:
    """For "left", "right", "top", "bottom" the number of the digit that has that outermost column or row to itself."""
    places, found = [(cell % SIDE, cell // SIDE) for cell in cells], {}
    for name, axis, end in (("left", 0, min), ("right", 0, max), ("top", 1, min), ("bottom", 1, max)):
        edge = end(place[axis] for place in places)
        alone = [number for number, place in enumerate(places) if place[axis] == edge]
        if len(alone) == 1:
            found[name] = alone[0]
    return found


class Digits(GeneratedTask):
    """Two to four digits in a row that make a number, or one to six scattered ones; 16 to 30 px."""

    name = "digits"
    regimes = ("digits",)

    def available(self) -> str | None:
        """See `Task.available`."""
        return None if _file() else "scikit-learn with its digits data file is not installed"

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        if rng.random() < 0.5:
            n = rng.randint(2, 4)
            first = rng.randint(1, 9)
            return {
                "layout": "row",
                "digits": [first, *(rng.randrange(10) for _ in range(n - 1))],
                "row": rng.randrange(3),
            }
        n = rng.randint(1, 6)
        cells = sorted(rng.sample(range(SIDE * SIDE), n))
        if n > 1 and not _outermost(cells):
            return None
        return {"layout": "scattered", "digits": [rng.randrange(10) for _ in cells], "cells": cells}

    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        rng, values = canvas.rng, programme["digits"]
        canvas.fill_ground(())
        ink = canvas.ink(canvas.ground)
        if programme["layout"] == "row":
            size = rng.randint(18, min(30, (IMAGE_SIZE - 8) // len(values)))
            pitch = size * 0.84  # a scan has empty columns at both sides
            left = rng.uniform(4 + size / 2, IMAGE_SIZE - 4 - size / 2 - pitch * (len(values) - 1))
            middle = size / 2 + 3 + (programme["row"] + rng.random()) / 3 * (IMAGE_SIZE - size - 6)
            places = [(left + pitch * k, middle + rng.uniform(-2, 2), size) for k in range(len(values))]
        else:
            step, places = IMAGE_SIZE / SIDE, []
            for cell in programme["cells"]:
                size = rng.randint(18, 30)
                slack = (step - size) / 2
                column, row = cell % SIDE, cell // SIDE
                places.append((*(step * (k + 0.5) + rng.uniform(-slack, slack) for k in (column, row)), size))
        for part, (value, (x, y, size)) in enumerate(zip(values, places, strict=True)):
            number = rng.choice(scans_of(canvas.split)[value])
            mask = Image.fromarray(scans()[0][number]).resize((size, size), Image.Resampling.BICUBIC)
            left, top = round(x - size / 2), round(y - size / 2)
            canvas.image.paste(canvas.jitter(PALETTE[ink]), (left, top), mask)
            inset = size // 8  # the glyph class covers the box of the character, as for printed text
            box = (left + inset, top, left + size - inset, top + size)
            canvas.label(box, str(value), ink)
            canvas.part(str(part), box)

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        values = programme["digits"]
        asks, every = [], tuple(map(str, range(len(values))))
        if programme["layout"] == "row":
            asks.append(Ask("number_written", {}, ("".join(map(str, values)),), at=every))
            for place, k in (("left", 0), ("right", len(values) - 1)):
                asks.append(Ask("digit_at", {"place": place}, (str(values[k]),), at=(str(k),)))
            if rng.random() < 0.3:
                asks.append(Ask("count_digits", {}, (str(len(values)),), at=centres(range(len(values)))))
            return pick(asks, 4, rng)
        for place, found in _outermost(programme["cells"]).items() if len(values) > 1 else ():
            asks.append(Ask("digit_at", {"place": place}, (str(values[found]),), at=(str(found),)))
        asks.append(Ask("count_digits", {}, (str(len(values)),), at=centres(range(len(values)))))
        if len(values) == 1:
            asks.append(Ask("number_written", {}, (str(values[0]),), at=every))
        return pick(asks, 4, rng)

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        return "digits " + " ".join(map(str, programme["digits"]))

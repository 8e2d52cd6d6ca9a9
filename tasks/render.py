"""Shared drawing: backgrounds, shapes and text, each also drawn into the dense labels."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.tasks.base import CELL, COLOURS, DENSE_COLOUR, DENSE_WHAT, IMAGE_SIZE, Box
from foveate.tasks.splits import FONTS

RGB = tuple[int, int, int]
PALETTE: dict[str, RGB] = {
    "red": (214, 38, 38),
    "green": (38, 158, 62),
    "blue": (42, 82, 214),
    "yellow": (240, 214, 40),
    "purple": (146, 48, 176),
    "orange": (246, 132, 26),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}
INKS = ("black", "blue", "red", "green", "purple")  # dark enough for text on a light page
GROUNDS: tuple[RGB, ...] = (
    (236, 236, 232), (206, 206, 206), (128, 128, 128), (92, 92, 96), (52, 52, 56), (24, 26, 34),
    (200, 220, 236), (232, 216, 196), (210, 230, 206), (236, 210, 224), (60, 84, 96), (86, 60, 48), (48, 74, 52),
)  # fmt: skip
WHAT = {name: number for number, name in enumerate(DENSE_WHAT)}
COLOUR = {name: number for number, name in enumerate(DENSE_COLOUR)}
MIN_FONT = 11  # px: below this a person has to guess


def distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Euclidean distance of two RGB colours, brightness counted twice: what makes edges visible."""
    luma = abs(sum(w * (x - y) for w, x, y in zip((0.3, 0.59, 0.11), a, b, strict=True)))
    return math.dist(a, b) / 1.7 + luma


@lru_cache(maxsize=512)
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A vendored face at `size` px."""
    path = resources.files("foveate.tasks") / "data" / "fonts" / f"{face}.ttf"
    with path.open("rb") as file:
        return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1 << 15)
def glyph(face: str, size: int, character: str) -> tuple[float, int, int]:
    """Advance, top and bottom of a character relative to the baseline, in px."""
    loaded = font(face, size)
    box = loaded.getbbox(character, anchor="ls")
    return loaded.getlength(character), box[1], box[3]


def text_width(face: str, size: int, text: str) -> float:
    """Width of a line in px."""
    return sum(glyph(face, size, character)[0] for character in text)


def cap_height(face: str, size: int) -> int:
    """Height of capitals and digits over the baseline in px."""
    return -glyph(face, size, "0")[1]


@lru_cache(maxsize=1024)
def shape_mask(name: str, size: int) -> Image.Image:
    """Anti-aliased mask (size, size) of a shape that fills its box."""
    big = size * 4
    mask = Image.new("L", (big, big))
    draw, m = ImageDraw.Draw(mask), big - 1
    if name == "circle":
        draw.ellipse((0, 0, m, m), fill=255)
    elif name == "square":
        inset = round(0.06 * m)
        draw.rectangle((inset, inset, m - inset, m - inset), fill=255)
    elif name == "triangle":
        draw.polygon([(m / 2, 0), (m, 0.95 * m), (0, 0.95 * m)], fill=255)
    elif name == "star":
        tips = [(math.pi * (k / 5 - 0.5), m / 2 * (1.05 if k % 2 == 0 else 0.45)) for k in range(10)]
        draw.polygon([(m / 2 + r * math.cos(a), 0.53 * m + r * math.sin(a)) for a, r in tips], fill=255)
    elif name == "cross":
        draw.rectangle((0.33 * m, 0, 0.67 * m, m), fill=255)
        draw.rectangle((0, 0.33 * m, m, 0.67 * m), fill=255)
    elif name == "heart":
        turns = [2 * math.pi * k / 60 for k in range(60)]
        curve = [
            (16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
            for t in turns
        ]
        draw.polygon([(m / 2 + x / 32 * m, 0.42 * m - y / 32 * m) for x, y in curve], fill=255)
    else:
        raise ValueError(f"shape {name!r} is unknown")
    return mask.resize((size, size), Image.Resampling.BOX)


class Canvas:
    """One picture and its dense labels.

    Args:
        split: decides which fonts and pictures may be used.
        rng: the source of everything that the programme leaves open (jitter, noise, font, ground).
    """

    def __init__(self, split: str, rng: random.Random) -> None:
        self.split, self.rng = split, rng
        self.numpy = np.random.default_rng(rng.getrandbits(63))
        self.image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
        self.draw = ImageDraw.Draw(self.image)
        # class and colour of every pixel in one number: 16 * class + colour
        self.labels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.int16)
        self.noise = rng.choice((0.0, 2.0, 4.0, 8.0))
        self.ground: RGB = (0, 0, 0)
        self.parts: dict[str, tuple[Box, ...]] = {}  # what questions point at, by a name that the task gives

    def copy(self) -> Canvas:
        """The picture as it stands, to be drawn on apart; it goes on drawing from the same random numbers."""
        other = copy.copy(self)
        other.image, other.labels, other.parts = self.image.copy(), self.labels.copy(), dict(self.parts)
        other.draw = ImageDraw.Draw(other.image)
        return other

    def jitter(self, colour: Sequence[int], amount: int = 12) -> RGB:
        """A colour near `colour`."""
        r, g, b = (min(255, max(0, c + self.rng.randint(-amount, amount))) for c in colour)
        return r, g, b

    def fill_ground(self, colours: Iterable[str], light: bool = False) -> None:
        """Cover the picture with a ground on which every one of `colours` is visible.

        Args:
            colours: names of the colours that will stand on it.
            light: only page-like grounds.
        """
        shown = [PALETTE[name] for name in colours]
        near = [(min((distance(g, c) for c in shown), default=999.0), g) for g in GROUNDS if not light or min(g) > 190]
        fitting = [g for gap, g in near if gap >= 95] or [max(near)[1]]
        self.ground = self.jitter(self.rng.choice(fitting), 8)
        kind = self.rng.choice(("plain", "plain", "gradient", "noise", "lines"))
        self.draw.rectangle((0, 0, IMAGE_SIZE, IMAGE_SIZE), fill=self.ground)
        if kind == "gradient":
            self._shade(self.rng.randint(8, 24), knots=2)
        elif kind == "noise":
            self._shade(self.rng.randint(8, 18), knots=self.rng.choice((4, 8, 16)))
        elif kind == "lines":
            tone = self.jitter(self.ground, 16)
            for _ in range(self.rng.randint(3, 9)):
                self.draw.line([self.rng.randrange(IMAGE_SIZE) for _ in range(4)], fill=tone, width=1)

    def _shade(self, strength: int, knots: int) -> None:
        """Add smooth light and dark patches: `knots` x `knots` random heights, interpolated."""
        heights = self.numpy.integers(0, 256, (knots, knots), dtype=np.uint8)
        field = Image.fromarray(heights).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        offset = (np.asarray(field, np.float32) - 128) * (strength / 128)
        pixels = np.asarray(self.image, np.float32) + offset[..., None]
        self.image.paste(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))

    def label(self, box: tuple[float, float, float, float], what: str, colour: str) -> None:
        """Label the pixels of `box` (left, top, right, bottom; right and bottom excluded)."""
        left, top, right, bottom = (min(IMAGE_SIZE, max(0, round(edge))) for edge in box)
        self.labels[top:bottom, left:right] = 16 * WHAT[what] + COLOUR[colour]

    def label_mask(self, mask: Image.Image, left: int, top: int, what: str, colour: str) -> None:
        """Label the pixels where `mask` (an "L" image placed at left, top) is at least half covered."""
        covered = np.asarray(mask) >= 128
        height, width = covered.shape
        x0, y0, x1, y1 = max(0, left), max(0, top), min(IMAGE_SIZE, left + width), min(IMAGE_SIZE, top + height)
        part = covered[y0 - top : y1 - top, x0 - left : x1 - left]
        self.labels[y0:y1, x0:x1][part] = 16 * WHAT[what] + COLOUR[colour]

    def part(self, name: str, box: Box) -> None:
        """Gives a thing's box the name `name`, and a patch's worth around its centre "centre of `name`".

        Counting looks at centres: a large thing must not weigh more than a small one.
        """
        x, y, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, CELL
        self.parts[name] = (box,)
        self.parts[f"centre of {name}"] = ((x - half, y - half, x + half, y + half),)

    def shape(self, name: str, colour: str, centre: tuple[float, float], size: int, exactly: RGB | None = None) -> Box:
        """Draw a shape of `size` px around `centre` (x, y), in a tone of its own unless told; returns its box."""
        mask = shape_mask(name, size)
        left, top = round(centre[0] - size / 2), round(centre[1] - size / 2)
        self.image.paste(exactly or self.jitter(PALETTE[colour]), (left, top), mask)
        self.label_mask(mask, left, top, name, colour)
        return left, top, left + size, top + size

    def plate(self, box: tuple[int, int, int, int], colour: str) -> RGB:
        """Draw a coloured plate with round corners; returns its exact colour."""
        rgb = self.jitter(PALETTE[colour])
        self.draw.rounded_rectangle(
            (box[0], box[1], box[2] - 1, box[3] - 1), radius=self.rng.choice((0, 2, 4)), fill=rgb
        )
        self.label(box, "plate", colour)
        return rgb

    def text(self, x: float, baseline: float, text: str, face: str, size: int, colour: str) -> tuple[Box, ...]:
        """Write `text` from `x` on `baseline` in the named colour; letters and digits are labelled, box by box.

        Returns:
            The boxes of its letters and digits.
        """
        boxes = []
        self.draw.text((x, baseline), text, fill=self.jitter(PALETTE[colour]), font=font(face, size), anchor="ls")
        for character in text:
            advance, top, bottom = glyph(face, size, character)
            if character.lower() in WHAT:
                boxes.append((x, baseline + top, x + advance, baseline + bottom))
                self.label(boxes[-1], character.lower(), colour)
            x += advance
        return tuple(boxes)

    def fonts(self) -> list[str]:
        """The faces of this split in random order."""
        return self.rng.sample(FONTS[self.split], len(FONTS[self.split]))

    def fit(self, lines: Sequence[str], width: float, sizes: tuple[int, int]) -> tuple[str, int]:
        """A face and a size (at most sizes[1], at least sizes[0]) in which every line is at most `width` px wide.

        Falls back to the narrowest face at the smallest size.
        """
        low, high = sizes
        wanted = self.rng.randint(low, high)
        faces = self.fonts()
        for face in faces:
            for size in range(wanted, low - 1, -1):
                if all(text_width(face, size, line) <= width for line in lines):
                    return face, size
        return min(faces, key=lambda face: max(text_width(face, low, line) for line in lines)), low

    def ink(self, ground: Sequence[int], only: Sequence[str] = COLOURS) -> str:
        """The name of a colour in which text stands out clearly from `ground`."""
        gaps = [(distance(PALETTE[name], ground), name) for name in only]
        return self.rng.choice([name for gap, name in gaps if gap >= 215] or [max(gaps)[1]])

    def image_array(self) -> np.ndarray:
        """(96, 96, 3) uint8 with this picture's grain."""
        pixels = np.asarray(self.image)
        if self.noise == 0:
            return pixels.copy()
        grain = self.numpy.standard_normal(pixels.shape, dtype=np.float32) * np.float32(self.noise)
        return (pixels + grain).clip(0, 255).astype(np.uint8)

    def dense(self) -> np.ndarray:
        """(24, 24, 2) int16 labels, see `Sample.dense`."""
        n = IMAGE_SIZE // CELL
        cells = self.labels.reshape(n, CELL, n, CELL).swapaxes(1, 2).reshape(n * n, CELL * CELL)
        busy = np.flatnonzero((cells != 0).sum(axis=1) * 4 >= CELL * CELL)
        values = np.sort(cells[busy], axis=1)  # sorted: equal counts go to the lower class
        votes = (values[:, :, None] == values[:, None, :]).sum(axis=2) * (values != 0)
        best = np.zeros(n * n, np.int16)
        best[busy] = values[np.arange(len(busy)), votes.argmax(axis=1)]
        return np.stack((best // 16, best % 16), axis=-1).reshape(n, n, 2)

"""What a video is painted on: some frames on one ground, and things that have a place in each frame or none."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from foveate.tasks.base import CELL, COLOURS, IMAGE_SIZE, SHAPES, Box
from foveate.tasks.clip import Clip
from foveate.tasks.generated import Programme
from foveate.tasks.render import PALETTE, Canvas

FPS = 2.0  # frames a second: a built-in clip says so, nobody asks for it
SIZES = ((26, 28), (29, 30))  # px: smallest and largest thing of each bucket
STEP = 32  # px: side of a cell, of which a frame has 3 x 3
CELLS = tuple((STEP // 2 + STEP * (k % 3), STEP // 2 + STEP * (k // 3)) for k in range(9))  # their middles, (x, y)
REACH = SIZES[-1][1] // 2 + 1  # px from a thing's middle to its furthest edge, the jitter of a whole film included
PARTS = ("start", "middle", "end")

Thing = list  # [colour, shape, size bucket], plain data inside a programme
Place = list  # [x, y] of the middle, px
Track = list  # for every frame a Place, or None where the thing is not there


class Film:
    """The frames of one video.

    Args:
        split: decides which fonts may be used.
        rng: the source of everything that the programme leaves open.
        frames: how many.

    Attributes:
        frames: a canvas each, once `roll` has been called.
        parts: what questions point at; see `Canvas.parts`.
    """

    def __init__(self, split: str, rng: random.Random, frames: int) -> None:
        self.split, self.rng, self.length = split, rng, frames
        self.first = Canvas(split, rng)
        self.frames: list[Canvas] = []
        self.parts: dict[str, tuple[Box, ...]] = {}

    def roll(self, colours: Iterable[str], camera: Sequence[Place] | None = None, light: bool = False) -> None:
        """Gives every frame the same ground, on which all of `colours` are visible; it goes by where a camera moves.

        Args:
            colours: names of the colours that will stand on it.
            camera: where the upper left corner of each frame is, px; None = it stands still.
            light: only page-like grounds.
        """
        self.first.fill_ground(colours, light)
        self.frames = [self.first.copy() for _ in range(self.length)]
        if camera is None:
            return
        ground = np.asarray(self.first.image)
        wide = np.concatenate([ground, ground[:, ::-1]], axis=1)
        endless = np.concatenate([wide, wide[::-1]])  # mirrored: its edges meet
        for frame, (x, y) in zip(self.frames, camera, strict=True):
            seen = np.roll(endless, (-y, -x), axis=(0, 1))[:IMAGE_SIZE, :IMAGE_SIZE]
            frame.image.paste(Image.fromarray(np.ascontiguousarray(seen)))

    def play(self, things: Sequence[Thing], tracks: Sequence[Track]) -> None:
        """Draws each thing wherever its track says; a thing keeps its tone and size. Its box in frame t gets the name
        "n@t", a patch's worth around its middle "centre of n@t"."""
        shift = self.rng.randint(-1, 1), self.rng.randint(-1, 1)
        for number, ((colour, shape, bucket), track) in enumerate(zip(things, tracks, strict=True)):
            size, tone = self.rng.randint(*SIZES[bucket]), self.first.jitter(PALETTE[colour])
            for t, place in enumerate(track):
                if place is None:
                    continue
                x, y = place[0] + shift[0], place[1] + shift[1]
                box = self.frames[t].shape(shape, colour, (x, y), size, tone)
                self.parts[f"{number}@{t}"] = ((*box, t),)
                self.parts[f"centre of {number}@{t}"] = ((x - CELL, y - CELL, x + CELL, y + CELL, t),)

    def dense(self) -> np.ndarray:
        """(T, 24, 24, 2) int16 labels, see `Sample.dense`."""
        return np.stack([frame.dense() for frame in self.frames])

    def clip(self) -> Clip:
        """The video, each frame with grain of its own."""
        return Clip.of(np.stack([frame.image_array() for frame in self.frames]), FPS)


def some_things(rng: random.Random, n: int) -> list[Thing]:
    """`n` things, no two of one colour or one shape."""
    pairs = zip(rng.sample(COLOURS, n), rng.sample(SHAPES, n), strict=True)
    return [[colour, shape, rng.randrange(len(SIZES))] for colour, shape in pairs]


def whole(cell: int, frames: int) -> Track:
    """The track of a thing that stays in a cell."""
    return [list(CELLS[cell])] * frames


def within(cell: int, frames: int, times: Iterable[int]) -> Track:
    """The track of a thing that is in a cell at these times only."""
    there = set(times)
    return [list(CELLS[cell]) if t in there else None for t in range(frames)]


def there(track: Track) -> list[int]:
    """The frames in which a thing is."""
    return [t for t, place in enumerate(track) if place is not None]


def spans(rng: random.Random, n: int, frames: int, apart: int) -> list[range]:
    """`n` stretches of at least one frame one after the other, at least `apart` frames between them, at random."""
    long, gaps = [1] * n, [0] + [apart] * (n - 1) + [0]
    for _ in range(frames - n - apart * (n - 1)):
        bins, most = rng.choice(((long, n), (gaps, n + 1)))
        bins[rng.randrange(most)] += 1
    out, at = [], 0
    for gap, length in zip(gaps, long, strict=False):
        out.append(range(at + gap, at + gap + length))
        at += gap + length
    return out


def frame_of_part(rng: random.Random, frames: int, first: int, last: int) -> int:
    """A frame from `first` to `last`: its part of the clip is drawn first, so that no part is asked for most."""
    groups = [[t for t in range(first, last + 1) if part_of(t, frames) == part] for part in PARTS]
    return rng.choice(rng.choice([group for group in groups if group]))


def part_of(t: int, frames: int) -> str:
    """Which third of the clip a frame lies in."""
    return PARTS[3 * t // frames]


def called(thing: Thing) -> dict[str, str]:
    """The slots that name a thing."""
    return {"colour": thing[0], "shape": thing[1]}


def listed(programme: Programme) -> str:
    """What is in a film."""
    return ", ".join(f"a {colour} {shape}" for colour, shape, _ in programme["things"])

"""Vendored clip art and the photographs it is pasted on, both divided among the splits."""

from __future__ import annotations

import importlib.util
import json
import random
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from foveate.tasks.base import IMAGE_SIZE

# Photographs that come inside two packages; close crops of them serve as textures.
PHOTOS: dict[str, tuple[tuple[str, str], ...]] = {
    "host-train": (
        ("skimage", "data/grass.png"),
        ("skimage", "data/gravel.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/motorcycle_left.png"),
    ),
    "policy-train": (("skimage", "data/brick.png"), ("skimage", "data/ihc.png")),
    "validation": (("skimage", "data/rocket.jpg"), ("skimage", "data/moon.png")),
    "calibration": (("sklearn", "datasets/images/flower.jpg"), ("skimage", "data/microaneurysms.png")),
    "test": (("sklearn", "datasets/images/china.jpg"), ("skimage", "data/retina.jpg")),
}


def _photo_path(package: str, name: str) -> Path | None:
    """Where the photograph lies, without importing its package; None when it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], name)
    return path if path.is_file() else None


def missing_photos() -> list[str]:
    """Names of the photographs that are not installed here."""
    wanted = [photo for photos in PHOTOS.values() for photo in photos]
    return [f"{package}/{name}" for package, name in wanted if _photo_path(package, name) is None]


@lru_cache(maxsize=16)
def _photo(package: str, name: str) -> Image.Image:
    """A photograph, halved in contrast so that what lies on it stands out, at most 480 px a side."""
    with Image.open(_photo_path(package, name)) as file:
        image = file.convert("RGB")
    image.thumbnail((480, 480), Image.Resampling.LANCZOS)
    mean = image.resize((1, 1), Image.Resampling.BOX).resize(image.size)
    return Image.blend(image, mean, 0.5)


def photo_ground(split: str, rng: random.Random) -> Image.Image:
    """A 96 x 96 crop of a photograph of `split`: so close that it shows texture, not things."""
    photo = _photo(*rng.choice(PHOTOS[split]))
    side = rng.randint(32, 64)
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    box = (left, top, left + side, top + side)
    return photo.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=box)


@lru_cache(maxsize=1)
def _sheet() -> Image.Image:
    with (resources.files("foveate.tasks") / "data" / "clipart" / "sheet.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


@lru_cache(maxsize=1)
def catalogue() -> tuple[dict, ...]:
    """Every vendored picture: what it shows, its split, its box on the sheet (px) and its source file."""
    text = (resources.files("foveate.tasks") / "data" / "clipart" / "index.json").read_text()
    return tuple(json.loads(text))


@lru_cache(maxsize=128)
def pictures_of(split: str, what: str) -> tuple[int, ...]:
    """Numbers in the catalogue of the pictures of `what` that belong to `split`."""
    return tuple(k for k, row in enumerate(catalogue()) if row["split"] == split and row["what"] == what)


@lru_cache(maxsize=8192)  # 161 pictures, 17 sizes, two sides: a few KiB each
def picture(number: int, size: int, flipped: bool) -> tuple[Image.Image, Image.Image]:
    """A picture whose longer side is `size` px with a pale rim, so that it stands out from any ground.

    Returns:
        The RGBA picture with 2 px around it, and its mask ("L", same size) without the rim.
    """
    part = _sheet().crop(tuple(catalogue()[number]["box"]))
    scale = size / max(part.size)
    part = part.resize(tuple(max(2, round(side * scale)) for side in part.size), Image.Resampling.LANCZOS)
    if flipped:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    whole = Image.new("RGBA", (part.width + 4, part.height + 4))
    whole.paste(part, (2, 2))
    mask = whole.getchannel("A")
    rim = Image.new("RGBA", whole.size, (238, 238, 232, 255))
    rim.putalpha(mask.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.BoxBlur(0.5)))
    return Image.alpha_composite(rim, whole), mask


def tint(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with its brightness and colour balance moved a little; alpha stays."""
    gains = np.array([*(rng.uniform(0.86, 1.1) for _ in range(3)), 1.0], np.float32)
    return Image.fromarray((np.asarray(image) * gains).clip(0, 255).astype(np.uint8))

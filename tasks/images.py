"""Pictures from outside: opened with limits, whatever is in the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.tasks.base import TaskDataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is opened at all. Among what is not are formats that Pillow hands to another program (EPS)."""

STILL = ("JPEG", "MPO")
"""Formats whose further frames are a camera's extra views of one photograph: the first is the picture."""

MAX_PIXELS = 64_000_000
"""A picture above this is refused before it is decoded."""


class PictureError(TaskDataError):
    """A picture file that cannot be used: one line with its path and the reason."""


def open_picture(path: str | Path, root: str | Path | None = None) -> np.ndarray:
    """A picture file as (H, W, 3) uint8: turned as its EXIF data says, every colour mode made RGB.

    Size, format and number of frames are judged by the header, before anything is decoded.

    Args:
        path: the file.
        root: folder that `path` starts from (an absolute path stands for itself); None = the working folder.
    Raises:
        PictureError: not there, no picture of a known format, animated or of several pages, damaged, or larger than
            MAX_PIXELS.
    """
    try:
        return _decoded(Path(path) if root is None else Path(root) / path)
    except FileNotFoundError:
        where = "no such file" if root is None else f"not found under {root}"
        raise PictureError(f"image {str(path)!r}: {where}") from None
    except UnidentifiedImageError as error:
        raise PictureError(f"image {str(path)!r}: not a picture of a known format ({', '.join(FORMATS)})") from error
    except PictureError as error:
        raise PictureError(f"image {str(path)!r}: {error}") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"image {str(path)!r}: has too many pixels, the limit is {MAX_PIXELS}") from error
    except Exception as error:  # whatever a decoder trips over in a hostile file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"image {str(path)!r}: damaged ({reason})") from error


def _decoded(path: Path) -> np.ndarray:
    """See `open_picture`. Raises: what Pillow raises; PictureError without the path."""
    try:
        there = path.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise PictureError(getattr(error, "strerror", None) or str(error)) from error
    if not there:
        raise FileNotFoundError(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, by our own limit
        file = Image.open(path, formats=FORMATS)
    with file:
        if file.width * file.height > MAX_PIXELS:
            raise PictureError(f"has {file.width} x {file.height} pixels, the limit is {MAX_PIXELS}")
        if file.format not in STILL and getattr(file, "is_animated", False):
            raise PictureError(f"has {file.n_frames} frames or pages, a single picture is needed")
        return np.asarray(_rgb(ImageOps.exif_transpose(file))).copy()


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit is scaled to 8, transparent parts become white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        highest = values.max(initial=0)  # the wider modes do not say what their white is
        wide = image.mode.startswith("I;16") or highest > 255
        top = 65535.0 if wide else 1.0 if image.mode == "F" and highest <= 1 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")

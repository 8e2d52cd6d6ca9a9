"""Pictures from outside: opened with limits, whatever is in the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from foveate.tasks.base import TaskDataError
from foveate.tasks.jsonl import load_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is opened at all. Among what is not are formats that Pillow hands to another program (EPS)."""

STILL = ("JPEG", "MPO")
"""Formats whose further frames are a camera's extra views of one photograph: the first is the picture."""


class PictureError(ValueError):
    """A picture file that cannot be used: one line with its path and the reason."""


def open_picture(path: str | Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8: turned as its EXIF data says, every colour mode made RGB.

    Size, format and number of frames are judged by the header, before anything is decoded.

    Args:
        path: the file.
    Raises:
        PictureError: not there, no picture of a known format, animated or of several pages, damaged, or larger than
            `tasks.jsonl.MAX_PIXELS`.
    """
    path = Path(path)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise PictureError(f"image {str(path)!r}: {error}") from error
    if not is_file:
        raise PictureError(f"image {str(path)!r}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image has a limit of its own
            with Image.open(path, formats=FORMATS) as file:
                moving = file.format not in STILL and getattr(file, "is_animated", False)
                frames = file.n_frames if moving else 1
    except UnidentifiedImageError as error:
        raise PictureError(f"image {str(path)!r}: not a picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # whatever a decoder trips over in a hostile header
        raise PictureError(f"image {str(path)!r}: damaged ({_line(error)})") from error
    if moving:
        raise PictureError(f"image {str(path)!r}: has {frames} frames or pages, a single picture is needed")
    try:
        return load_image(path.parent, path.name)
    except TaskDataError as error:
        raise PictureError(f"{path.parent}: {error}") from error


def _line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__

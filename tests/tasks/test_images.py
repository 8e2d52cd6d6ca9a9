"""User pictures: every colour mode becomes RGB, everything else is refused in one line with the path."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from foveate.tasks import images
from foveate.tasks.base import TaskDataError
from foveate.tasks.images import PictureError, open_picture

pytestmark = pytest.mark.fast
RED = (200, 30, 10)


def png(path, width, height):
    """A PNG whose header claims a size and whose data holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("mode", "suffix", "value", "expected"),
    [
        ("RGB", "png", RED, RED),
        ("RGBA", "png", (*RED, 0), (255, 255, 255)),
        ("RGBA", "png", (*RED, 255), RED),
        ("L", "png", 77, (77, 77, 77)),
        ("I;16", "png", 65535, (255, 255, 255)),
        ("1", "png", 1, (255, 255, 255)),
        ("LA", "png", (77, 0), (255, 255, 255)),
        ("CMYK", "tif", (0, 255, 255, 0), (255, 0, 0)),
        ("P", "gif", 0, (0, 0, 0)),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, suffix, value, expected):
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (5, 3), value).save(path)
    got = open_picture(path)
    assert got.shape == (3, 5, 3) and got.dtype == np.uint8
    assert got[1, 2].tolist() == list(expected)


def test_wide_modes_are_scaled_by_what_their_white_is(tmp_path):
    for name, value, dtype, expected in (
        ("16.png", 257 * 100, np.uint16, 100),
        ("dark16.png", 200, np.uint16, 1),
        ("f.tif", 0.5, np.float32, 128),
    ):
        Image.fromarray(np.full((2, 3), value, dtype)).save(tmp_path / name)
        assert open_picture(name, tmp_path)[0, 0].tolist() == [expected] * 3


def test_a_photograph_in_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red, green, blue = open_picture(tmp_path / "cmyk.jpg")[0, 0]
    assert red > 200 and green < 60 and blue < 60


def test_a_path_starts_from_the_root_and_messages_name_both(tmp_path):
    Image.new("RGB", (3, 2), RED).save(tmp_path / "a.png")
    assert open_picture("a.png", tmp_path).shape == (2, 3, 3)
    assert open_picture(tmp_path / "a.png", tmp_path / "elsewhere").shape == (2, 3, 3)
    with pytest.raises(TaskDataError) as caught:
        open_picture("b.png", tmp_path)
    assert str(caught.value) == f"image 'b.png': not found under {tmp_path}"


def test_a_picture_is_turned_as_its_exif_data_says(tmp_path):
    picture = Image.new("RGB", (6, 2), (0, 0, 0))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by a quarter turn clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    got = open_picture(str(tmp_path / "turned.png"))
    assert got.shape == (6, 2, 3)
    assert got[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_an_animated_picture_is_refused(tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    frames = [Image.new("RGB", (4, 4), (i * 90, 0, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match=rf"film\.{suffix}.*3 frames or pages"):
        open_picture(path)


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    png(tmp_path / "bomb.png", 60_000, 60_000)
    with pytest.raises(PictureError, match=r"bomb\.png': has too many pixels, the limit is 64000000"):
        open_picture(tmp_path / "bomb.png")
    png(tmp_path / "large.png", 9_000, 9_000)
    with pytest.raises(PictureError, match=r"large\.png.*9000 x 9000 pixels, the limit is 64000000"):
        open_picture(tmp_path / "large.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "small.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert open_picture(tmp_path / "small.png").shape == (4, 6, 3)  # the limit itself is allowed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture"),
        (b"hello", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_path(tmp_path, content, reason):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"odd\.png.*{reason}") as caught:
        open_picture(tmp_path / "odd.png")
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_refused_with_its_path(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(PictureError, match=r"cut\.png.*damaged"):
        open_picture(path)


@pytest.mark.parametrize("name", ["gone.png", "", "a" * 400, "nul\0.png"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(PictureError, match="image"):
        open_picture(tmp_path / name)


def test_a_single_pixel_and_a_long_strip_are_pictures(tmp_path):
    for size in ((1, 1), (10_000, 1)):
        Image.new("RGB", size, RED).save(tmp_path / "odd.png")
        assert open_picture(tmp_path / "odd.png").shape == (size[1], size[0], 3)

"""The picture of kept tokens: which patches are bright, dimmed and outlined."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.serving.picture import DIMMED, OUTLINE, kept_picture, save_kept_picture

pytestmark = pytest.mark.fast


def middle(picture, row, column, cells=4):
    """The colour in the middle of a patch."""
    side = picture.width // cells
    return picture.getpixel((column * side + side // 2, row * side + side // 2))


def test_kept_patches_stay_bright_and_dropped_ones_are_dimmed():
    image = np.full((32, 32, 3), 200, np.uint8)
    got = kept_picture(image, (1, 4, 4), [0, 6])
    assert middle(got, 0, 0) == (200, 200, 200) and middle(got, 1, 2) == (200, 200, 200)
    dim = (int(200 * DIMMED),) * 3
    others = [(r, c) for r in range(4) for c in range(4) if (r, c) not in ((0, 0), (1, 2))]
    assert {middle(got, *cell) for cell in others} == {dim}


def test_kept_patches_are_outlined_and_nothing_else_is():
    got = np.asarray(kept_picture(np.zeros((32, 32, 3), np.uint8), (1, 4, 4), [5]))
    marked = np.argwhere((got == OUTLINE).all(-1))
    side = got.shape[0] // 4
    assert marked.min(0).tolist() == [side, side] and marked.max(0).tolist() == [2 * side - 1, 2 * side - 1]


def test_a_coarser_grid_has_larger_patches():
    got = kept_picture(np.full((32, 32, 3), 100, np.uint8), (1, 2, 2), [3])
    assert middle(got, 1, 1, cells=2) == (100, 100, 100) and middle(got, 0, 1, cells=2) == (30, 30, 30)


def test_tokens_without_a_place_are_not_drawn():
    image = np.full((32, 32, 3), 100, np.uint8)
    assert kept_picture(image, (1, 4, 4), [-1, -1]).tobytes() == kept_picture(image, (1, 4, 4), []).tobytes()


def test_a_large_picture_keeps_its_size_and_a_small_one_grows():
    assert kept_picture(np.zeros((600, 900, 3), np.uint8), (1, 2, 2), [0]).size == (900, 600)
    assert kept_picture(np.zeros((96, 96, 3), np.uint8), (1, 2, 2), [0]).size == (576, 576)
    assert kept_picture(np.zeros((1, 9000, 3), np.uint8), (1, 2, 2), [0]).size == (9000, 1)


@pytest.mark.parametrize(("grid", "positions", "match"), [((1, 2, 2), [4], "outside"), ((2, 2, 2), [0], "frames")])
def test_a_position_outside_the_grid_and_a_film_are_refused(grid, positions, match):
    with pytest.raises(ValueError, match=match):
        kept_picture(np.zeros((8, 8, 3), np.uint8), grid, positions)


def test_the_suffix_is_the_format(tmp_path):
    save_kept_picture(tmp_path / "kept.png", np.zeros((8, 8, 3), np.uint8), (1, 2, 2), [0])
    assert Image.open(tmp_path / "kept.png").format == "PNG"
    with pytest.raises(ValueError, match=r"kept\.bin"):
        save_kept_picture(tmp_path / "kept.bin", np.zeros((8, 8, 3), np.uint8), (1, 2, 2), [0])

"""The picture of kept tokens: which patches are bright, dimmed and outlined."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.models.boxes import WHOLE, padded_to, tiles
from foveate.models.inputs import View, film_of
from foveate.serving.picture import (
    BETWEEN,
    DIMMED,
    FRAME,
    GAP,
    MOST,
    OUTLINE,
    Strip,
    kept_panels,
    kept_picture,
    save_picture,
)
from foveate.tasks.clip import Clip

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
    made = kept_picture(np.zeros((8, 8, 3), np.uint8), (1, 2, 2), [0])
    save_picture(tmp_path / "kept.png", made)
    assert Image.open(tmp_path / "kept.png").format == "PNG"
    with pytest.raises(ValueError, match=r"kept\.bin"):
        save_picture(tmp_path / "kept.bin", made)


def test_a_picture_of_one_view_is_drawn_as_ever():
    image = np.full((40, 60, 3), 90, np.uint8)
    panels = kept_panels([image], [[WHOLE]], [[((1, 2, 3), [0, 5])]])
    assert panels.tobytes() == kept_picture(image, (1, 2, 3), [0, 5]).tobytes()


def test_tiles_lie_in_their_places_and_the_view_of_all_stands_beside_them():
    image = np.full((32, 64, 3), 200, np.uint8)
    one = (1, 2, 2)  # tokens of each view
    got = kept_panels([image], [[WHOLE, *tiles(1, 2)]], [[(one, [3]), (one, [0]), (one, [3])]])
    half = (got.width - GAP) // 2
    assert half == 2 * got.height
    left, right = (got.crop((x, 0, x + half, got.height)) for x in (0, half + GAP))
    cell = got.height // 2
    dim = (int(200 * DIMMED),) * 3
    bright = {
        (r, c) for r in range(2) for c in range(4) if left.getpixel((c * cell + cell // 2, r * cell + cell // 2)) != dim
    }
    assert bright == {(0, 0), (1, 3)}, "the first token of the left tile, the last of the right one"
    wide = half // 2
    bright = {
        (r, c)
        for r in range(2)
        for c in range(2)
        if right.getpixel((c * wide + wide // 2, r * cell + cell // 2)) != dim
    }
    assert bright == {(1, 1)}
    assert got.getpixel((half + GAP // 2, 0)) == (255, 255, 255)


def test_several_pictures_are_panels_beside_and_below_each_other():
    images = [np.full(size, 100, np.uint8) for size in ((512, 512, 3), (512, 600, 3), (2048, 1024, 3))]
    got = kept_panels(images, [[WHOLE]] * 3, [[((1, 1, 1), kept)] for kept in ([0], [], [0])])
    assert got.size == (512 + BETWEEN + 600, 512 + BETWEEN + MOST)
    middles = [got.getpixel(at) for at in ((256, 256), (512 + BETWEEN + 300, 256), (256, 512 + BETWEEN + 512))]
    assert middles == [(100,) * 3, (30,) * 3, (100,) * 3]


def test_tokens_of_padding_are_cut_off_and_what_no_view_covers_is_dimmed():
    image = np.full((64, 32, 3), 100, np.uint8)
    padded = kept_panels([image], [padded_to((64, 32), (1, 1), [WHOLE])], [[((1, 1, 4), [0, 1, 2, 3])]])
    assert padded.size == (512, 1024) and np.asarray(padded)[512, 10].tolist() == [100, 100, 100]
    cropped = kept_panels([image], [[(0.0, 0.25, 1.0, 0.75)]], [[((1, 1, 1), [0])]])
    assert [np.asarray(cropped)[y, 100].tolist() for y in (100, 512, 900)] == [[30] * 3, [100] * 3, [30] * 3]


def film(t, t_grid, chosen=None, frames=None):
    """A strip of `t` grey frames, of which `chosen` were shown, on a grid of `t_grid` frames that ended on `frames`."""
    clip = Clip.of(np.full((t, 32, 32, 3), 100, np.uint8))
    which = np.arange(t) if chosen is None else np.array(chosen)
    together = -(-len(which) // t_grid)
    view = View(np.zeros((t_grid * together, 8, 8, 3), np.uint8), (t_grid, 2, 2))
    times = film_of(clip).at(which)
    return Strip.of(clip, times, view, t_grid if frames is None else frames)


@pytest.mark.parametrize(
    ("strip", "unit"),
    [
        (film(4, 4), [0, 1, 2, 3]),
        (film(5, 3), [0, 0, 1, 1, 2]),  # two frames a token, the last one stands alone
        (film(6, 3, [0, 2, 5]), [0, -1, 1, -1, -1, 2]),
        (film(6, 2, [0, 1, 4, 5]), [0, 0, -1, -1, 1, 1]),
        (film(6, 6, None, 2), [0, 0, 0, 1, 1, 1]),  # a method made one frame of three
    ],
)
def test_frames_of_a_video_know_which_frame_of_the_grid_shows_them(strip, unit):
    assert strip.unit.tolist() == unit


def test_a_video_is_a_sheet_of_its_frames_and_what_was_left_out_is_dark():
    strip = film(4, 2, [0, 3])
    got = kept_panels([strip], [[WHOLE]], [[((2, 2, 2), [0, 7])]])
    assert got.size == (2 * FRAME + GAP, 2 * FRAME + GAP)
    starts = [(x, y) for y in (0, FRAME + GAP) for x in (0, FRAME + GAP)]
    cell = FRAME // 2
    bright = [
        [
            got.getpixel((x + c * cell + cell // 2, y + r * cell + cell // 2)) == (100,) * 3
            for r in (0, 1)
            for c in (0, 1)
        ]
        for x, y in starts
    ]
    assert bright == [[True, False, False, False], [False] * 4, [False] * 4, [False, False, False, True]]


def test_of_a_long_video_some_frames_are_drawn_and_pictures_stand_beside_it():
    strip = film(100, 100)
    got = kept_panels([strip], [[WHOLE]], [[((100, 2, 2), [])]])
    assert got.size == (8 * FRAME + 7 * GAP, 8 * FRAME + 7 * GAP)
    both = kept_panels([np.zeros((512, 512, 3), np.uint8), film(1, 1)], [[WHOLE]] * 2, [[((1, 1, 1), [0])]] * 2)
    assert both.size == (512 + BETWEEN + FRAME, 512)


def test_pictures_and_views_must_be_as_many():
    image = np.zeros((8, 8, 3), np.uint8)
    for pictures, boxes, kept in (([image], [[WHOLE]], []), ([image], [[WHOLE]], [[]])):
        with pytest.raises(ValueError, match="zip"):
            kept_panels(pictures, boxes, kept)

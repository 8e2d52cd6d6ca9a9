"""Drawing and its labels, on values worked out by hand."""

import numpy as np
import pytest

from foveate.tasks.base import SHAPES
from foveate.tasks.render import COLOUR, WHAT, Canvas, cap_height, glyph, shape_mask, text_width
from foveate.tasks.splits import stream

pytestmark = pytest.mark.fast


def blank():
    return Canvas("host-train", stream("test render"))


def test_a_cell_takes_the_class_of_most_of_its_labelled_pixels():
    canvas = blank()
    canvas.label((0, 0, 4, 3), "circle", "red")  # 12 pixels of cell (0, 0)
    canvas.label((0, 3, 4, 4), "square", "blue")  # the other 4
    canvas.label((4, 0, 8, 1), "star", "green")  # 4 of 16 pixels of cell (0, 1): just enough
    canvas.label((8, 0, 11, 1), "star", "green")  # 3 of 16: too few
    dense = canvas.dense()
    assert dense[0, 0].tolist() == [WHAT["circle"], COLOUR["red"]]
    assert dense[0, 1].tolist() == [WHAT["star"], COLOUR["green"]]
    assert not dense[0, 2:].any() and not dense[1:].any()


def test_dense_equals_a_slow_count_over_pixels():
    canvas = blank()
    for number, shape in enumerate(SHAPES):
        canvas.shape(shape, "red" if number % 2 else "blue", (20 + 11 * number, 15 + 12 * number), 27)
    dense = canvas.dense()
    for row in range(24):
        for column in range(24):
            cell = canvas.labels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].ravel().tolist()
            marked = [value for value in cell if value]
            best = min(set(marked), key=lambda v: (-marked.count(v), v)) if len(marked) >= 4 else 0
            assert dense[row, column].tolist() == [best // 16, best % 16]


def test_labels_outside_the_picture_are_cut_off():
    canvas = blank()
    canvas.label((-10, -10, 2, 2), "bar", "red")
    canvas.label_mask(shape_mask("square", 20), 86, 86, "square", "blue")
    assert (canvas.labels[:2, :2] == 16 * WHAT["bar"] + COLOUR["red"]).all()
    assert canvas.labels[95, 95] == 16 * WHAT["square"] + COLOUR["blue"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box_and_differs_from_the_others(shape):
    mask = np.asarray(shape_mask(shape, 24), float) / 255
    assert mask.shape == (24, 24) and 0.25 < mask.mean() < 0.95
    assert (mask.max(axis=0) > 0.4).mean() > 0.85 and (mask.max(axis=1) > 0.4).mean() > 0.8
    for other in SHAPES:
        if other != shape:
            assert np.abs(mask - np.asarray(shape_mask(other, 24), float) / 255).mean() > 0.04


def test_an_unknown_shape_is_named():
    with pytest.raises(ValueError, match="shape 'blob' is unknown"):
        shape_mask("blob", 20)


def test_text_is_labelled_letter_by_letter_where_it_is_drawn():
    canvas = blank()
    canvas.text(10, 40, "h8:", "DejaVuSans", 16, "red")
    width, height = glyph("DejaVuSans", 16, "h")[0], cap_height("DejaVuSans", 16)
    assert canvas.labels[39, 11] == 16 * WHAT["h"] + COLOUR["red"]
    assert canvas.labels[40 - height // 2, 10 + round(width) + 2] == 16 * WHAT["8"] + COLOUR["red"]
    assert set(np.unique(canvas.labels // 16)) == {0, WHAT["h"], WHAT["8"]}  # the colon has no class
    red = np.asarray(canvas.image, int)[..., 0] > 100
    columns = np.flatnonzero(red.any(axis=0))
    assert 10 <= columns.min() and columns.max() <= 10 + text_width("DejaVuSans", 16, "h8:")


def test_fit_takes_the_largest_size_that_fits_and_falls_back_to_the_narrowest_face():
    canvas = blank()
    face, size = canvas.fit(["wide words"], 80, (11, 30))
    assert text_width(face, size, "wide words") <= 80
    face, size = canvas.fit(["never fits here at all"], 10, (11, 30))
    assert size == 11
    assert text_width(face, 11, "never fits here at all") == min(
        text_width(other, 11, "never fits here at all") for other in canvas.fonts()
    )

"""What a person must be able to read: nothing cut off, nothing too small, nothing over something else."""

import pytest

from foveate.tasks.base import IMAGE_SIZE, SPLITS
from foveate.tasks.documents import GAP, MARGIN, Documents, column_widths, fit_columns
from foveate.tasks.registry import regime_sample
from foveate.tasks.render import GROUNDS, MIN_FONT, PALETTE, Canvas, distance, text_width
from foveate.tasks.splits import FONTS, stream

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("regime", ["reading", "tables", "receipts", "forms", "charts", "transcript"])
def test_text_is_large_enough_whole_and_in_a_face_of_the_split(regime, monkeypatch):
    written = []
    plain = Canvas.text

    def spy(canvas, x, baseline, text, face, size, colour):
        written.append((canvas.split, x, baseline, text, face, size))
        return plain(canvas, x, baseline, text, face, size, colour)

    monkeypatch.setattr(Canvas, "text", spy)
    for split in SPLITS:
        for index in range(25):
            regime_sample(regime, split, index)
    assert len(written) > 200
    for split, x, baseline, text, face, size in written:
        assert face in FONTS[split] and size >= MIN_FONT
        assert x >= 0 and x + text_width(face, size, text) <= IMAGE_SIZE, (regime, text, face, size)
        assert 0.7 * size <= baseline <= IMAGE_SIZE - 1, (regime, text, baseline, size)


@pytest.mark.parametrize(("regime", "smallest"), [("single", 16), ("search", 14), ("counting", 14), ("relations", 15)])
def test_objects_are_whole_large_enough_and_apart(regime, smallest, monkeypatch):
    drawn = []
    plain = Canvas.shape

    def spy(canvas, name, colour, centre, size):
        drawn.append((centre, size))
        return plain(canvas, name, colour, centre, size)

    monkeypatch.setattr(Canvas, "shape", spy)
    for index in range(60):
        drawn.clear()
        regime_sample(regime, "host-train", index)
        boxes = [(x - size / 2, y - size / 2, x + size / 2, y + size / 2) for (x, y), size in drawn]
        assert min(size for _, size in drawn) >= smallest
        for left, top, right, bottom in boxes:
            assert min(left, top) >= -0.5 and max(right, bottom) <= IMAGE_SIZE + 0.5
        for number, a in enumerate(boxes):
            for b in boxes[:number]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_all_columns_of_every_table_fit_on_the_page():
    task = Documents()
    for split in SPLITS:
        for index in range(60):
            programme, _ = task.find(split, index)
            lines = task.lines(programme)
            face, size = fit_columns(Canvas(split, stream("fit", index)), lines)
            widths = column_widths(face, size, lines)
            assert sum(widths) + GAP * (len(widths) - 1) <= IMAGE_SIZE - 2 * MARGIN


def test_ink_stands_out_from_every_ground_and_plate():
    canvas = Canvas("test", stream("ink"))
    for ground in [*GROUNDS, *PALETTE.values()]:
        for _ in range(10):
            assert distance(PALETTE[canvas.ink(ground)], ground) >= 200
    assert distance(PALETTE["blue"], PALETTE["black"]) < 200  # so this pair is never drawn


def test_grounds_let_every_colour_of_the_scene_be_seen():
    for index in range(80):
        canvas = Canvas("host-train", stream("ground", index))
        colours = canvas.rng.sample(sorted(PALETTE), 3)
        canvas.fill_ground(colours)
        assert min(distance(PALETTE[name], canvas.ground) for name in colours) > 60

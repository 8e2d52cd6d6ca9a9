"""The user's own data: what is read, and the one line that says what is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from foveate.tasks import jsonl
from foveate.tasks.base import TaskDataError
from foveate.tasks.jsonl import load_image, read_jsonl

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "a.png")
    return tmp_path


def write(folder, *rows):
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def test_both_forms_of_row_are_read(folder):
    rows = (
        {"image": "a.png", "question": "how many?", "answers": ["2", "two"]},
        {
            "image": "a.png",
            "turns": [{"question": "what?", "answers": ["a cat"]}, {"question": "where?", "answers": None}],
            "regime": "mine",
            "split": "test",
            "family": "f1",
        },
    )
    first, second = read_jsonl(write(folder, *rows))
    assert first.image.shape == (4, 6, 3) and first.image[0, 0].tolist() == [10, 20, 30]
    assert first.turns[0].question == "how many?" and first.turns[0].answers == ("2", "two")
    assert (first.id, first.task, first.regime, first.split, first.index) == ("data/1", "data", "data", "user", 0)
    assert [turn.answers for turn in second.turns] == [("a cat",), ()]
    assert (second.regime, second.split, second.family) == ("mine", "test", "f1")
    assert first.dense is None and first.family != second.family


def test_rows_about_one_picture_share_a_family(folder):
    row = {"image": "a.png", "question": "q?", "answers": None}
    first, second = read_jsonl(write(folder, row, row))
    assert first.family == second.family and first.id != second.id


def test_pictures_may_lie_in_another_folder(folder, tmp_path):
    other = tmp_path / "rows"
    other.mkdir()
    path = write(other, {"image": "a.png", "question": "q?", "answers": ["x"]})
    assert len(list(read_jsonl(path, root=folder))) == 1
    lines = []
    assert list(read_jsonl(path, report=lines.append)) == []
    assert lines == [f"data.jsonl:1: image 'a.png' not found under {other}"]


GOOD = {"image": "a.png", "question": "q?", "answers": ["x"]}
BAD = [
    (b'{"image": "a.png"', "not valid JSON"),
    (b"\xff\xfe{}", "not UTF-8 (byte 0)"),
    ([1, 2], "expected a JSON object, found list"),
    ({**GOOD, "imgae": 1}, "unknown key 'imgae', known are answers, caption, family"),
    ({"question": "q?", "answers": ["x"]}, "image is missing"),
    ({**GOOD, "image": 3}, "image is 3, expected text"),
    ({**GOOD, "image": "b.png"}, "image 'b.png' not found under "),
    ({**GOOD, "image": "."}, "image '.' not found under "),
    ({**GOOD, "image": "x" * 300}, "File name too long"),
    ({**GOOD, "question": "  "}, "question is empty or missing"),
    ({**GOOD, "question": None}, "question is empty or missing"),
    ({"image": "a.png", "question": "q?"}, "answers is missing (null marks a label-free row)"),
    ({**GOOD, "answers": []}, "answers is empty or no list"),
    ({**GOOD, "answers": "x"}, "answers is empty or no list"),
    ({**GOOD, "answers": ["x", 4]}, "answers holds 4, expected text"),
    ({**GOOD, "turns": []}, "give either turns or question and answers"),
    ({"image": "a.png", "turns": []}, "turns is empty or no list"),
    ({"image": "a.png", "turns": ["q?"]}, "turns[0] is no JSON object"),
    (
        {"image": "a.png", "turns": [{"question": "q?", "answers": ["x"]}, {"question": ""}]},
        "turns[1].question is empty",
    ),
    ({"image": "a.png", "turns": [{"question": "q?", "answer": "x"}]}, "turns[0] has the unknown key 'answer'"),
    ({"image": "a.png", "turns": [{"question": "q?"}]}, "turns[0].answers is missing"),
    ({**GOOD, "split": ""}, "split is '', expected text"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason[:30] for _, reason in BAD])
def test_a_bad_row_is_one_line_with_its_number_and_the_rest_goes_on(folder, row, reason):
    path, lines = write(folder, GOOD, b"", row, GOOD), []
    samples = list(read_jsonl(path, report=lines.append))
    assert [sample.id for sample in samples] == ["data/1", "data/4"]
    (line,) = lines
    assert line.startswith("data.jsonl:3: ") and reason in line and "\n" not in line
    with pytest.raises(TaskDataError, match=r"^data\.jsonl:3: "):
        list(read_jsonl(path, on_error="raise"))


def test_skipped_rows_go_to_standard_error_by_default(folder, capsys):
    assert list(read_jsonl(write(folder, {"image": "no.png", "question": "q?", "answers": None}))) == []
    assert capsys.readouterr().err == f"data.jsonl:1: image 'no.png' not found under {folder}\n"


def test_bad_calls_are_refused_at_once(folder):
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        read_jsonl(write(folder, GOOD), on_error="ignore")
    with pytest.raises(TaskDataError, match="absent.jsonl: file not found"):
        read_jsonl(folder / "absent.jsonl")


def test_rows_are_streamed(folder):
    rows = read_jsonl(write(folder, GOOD, b"{broken"), on_error="raise")
    assert next(rows).id == "data/1"  # the broken row has not been looked at
    with pytest.raises(TaskDataError, match="data.jsonl:2"):
        next(rows)


class TestImages:
    def test_the_exif_turn_is_applied(self, folder):
        image = Image.new("RGB", (4, 2), "red")
        image.putpixel((0, 0), (0, 0, 255))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned 90 degrees clockwise
        image.save(folder / "turned.png", exif=exif)
        pixels = load_image(folder, "turned.png")
        assert pixels.shape == (4, 2, 3) and pixels[0, 1].tolist() == [0, 0, 255]

    def test_every_mode_becomes_rgb(self, folder):
        Image.new("L", (3, 2), 77).save(folder / "l.png")
        Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=95)
        Image.new("P", (3, 2), 1).save(folder / "p.png")
        Image.fromarray(np.full((2, 3), 257 * 100, np.uint16)).save(folder / "16.png")
        Image.fromarray(np.full((2, 3), 200, np.uint16)).save(folder / "dark16.png")
        Image.fromarray(np.full((2, 3), 0.5, np.float32)).save(folder / "f.tif")
        Image.new("1", (3, 2), 1).save(folder / "bit.png")
        for name in ("l.png", "cmyk.jpg", "p.png", "16.png", "dark16.png", "f.tif", "bit.png"):
            pixels = load_image(folder, name)
            assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8, name
        assert load_image(folder, "l.png")[0, 0].tolist() == [77, 77, 77]
        assert load_image(folder, "16.png")[0, 0].tolist() == [100, 100, 100]
        assert load_image(folder, "dark16.png")[0, 0].tolist() == [1, 1, 1]
        assert load_image(folder, "f.tif")[0, 0].tolist() == [128, 128, 128]
        assert load_image(folder, "bit.png")[0, 0].tolist() == [255, 255, 255]
        assert load_image(folder, "cmyk.jpg")[0, 0, 0] > 200 and load_image(folder, "cmyk.jpg")[0, 0, 1] < 60

    def test_transparent_parts_become_white(self, folder):
        Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(folder / "clear.png")
        Image.new("RGBA", (2, 2), (200, 0, 0, 255)).save(folder / "solid.png")
        assert load_image(folder, "clear.png")[0, 0].tolist() == [255, 255, 255]
        assert load_image(folder, "solid.png")[0, 0].tolist() == [200, 0, 0]

    def test_damaged_and_foreign_files_are_named(self, folder):
        Image.effect_noise((64, 64), 50).save(folder / "whole.png")
        (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:900])
        (folder / "text.png").write_text("no picture")
        (folder / "empty.png").write_bytes(b"")
        with pytest.raises(TaskDataError, match="image 'cut.png' is damaged"):
            load_image(folder, "cut.png")
        for name in ("text.png", "empty.png"):
            with pytest.raises(TaskDataError, match=f"image '{name}' is no image file"):
                load_image(folder, name)

    def test_a_picture_with_too_many_pixels_is_refused_before_decoding(self, folder, monkeypatch):
        monkeypatch.setattr(jsonl, "MAX_PIXELS", 20)
        with pytest.raises(TaskDataError, match="image 'a.png' has 6 x 4 pixels, the limit is 20"):
            load_image(folder, "a.png")

    def test_a_bomb_is_refused(self, folder, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        with pytest.raises(TaskDataError, match="image 'a.png' has too many pixels"):
            load_image(folder, "a.png")

"""The user's own data: what is read, and the one line that says what is wrong."""

import json

import numpy as np
import pytest
from filming import write_film
from PIL import Image

from foveate.tasks import images
from foveate.tasks.base import TaskDataError
from foveate.tasks.jsonl import read_jsonl

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


def test_a_row_may_ask_about_several_pictures_in_order(folder):
    Image.new("RGB", (3, 5), (40, 50, 60)).save(folder / "b.png")
    about = {"question": "which is larger?", "answers": ["the first"]}
    path = write(
        folder,
        {"image": "a.png", **about},
        {"images": ["a.png", "b.png"], **about},
        {"images": ["a.png", "b.png"], "turns": [about, about]},
        {"images": ["b.png", "a.png"], **about},
    )
    one, two, same, turned = read_jsonl(path)
    assert one.images == (one.image,) and one.shown is one.image
    assert [image.shape for image in two.images] == [(4, 6, 3), (5, 3, 3)] and two.shown == two.images
    assert two.image is two.images[0] and turned.image.shape == (5, 3, 3)
    assert two.family == same.family and len({one.family, two.family, turned.family}) == 3


def test_a_list_of_one_picture_is_that_picture(folder):
    about = {"question": "q?", "answers": None}
    plain, listed = read_jsonl(write(folder, {"image": "a.png", **about}, {"images": ["a.png"], **about}))
    assert plain.family == listed.family and listed.more == ()


def test_pictures_may_lie_in_another_folder(folder, tmp_path):
    other = tmp_path / "rows"
    other.mkdir()
    path = write(other, {"image": "a.png", "question": "q?", "answers": ["x"]})
    assert len(list(read_jsonl(path, root=folder))) == 1
    lines = []
    assert list(read_jsonl(path, report=lines.append)) == []
    assert lines == [f"data.jsonl:1: image 'a.png': not found under {other}"]


GOOD = {"image": "a.png", "question": "q?", "answers": ["x"]}
BAD = [
    (b'{"image": "a.png"', "not valid JSON"),
    (b"\xff\xfe{}", "not UTF-8 (byte 0)"),
    ([1, 2], "expected a JSON object, found list"),
    ({**GOOD, "imgae": 1}, "unknown key 'imgae', known are answers, caption, family"),
    ({"question": "q?", "answers": ["x"]}, "image is missing"),
    ({**GOOD, "image": 3}, "image is 3, expected text"),
    ({**GOOD, "image": "b.png"}, "image 'b.png': not found under "),
    ({**GOOD, "images": ["a.png"]}, "give either image or images, not both"),
    ({"question": "q?", "answers": ["x"], "images": []}, "images is empty or no list"),
    ({"question": "q?", "answers": ["x"], "images": "a.png"}, "images is empty or no list"),
    ({"question": "q?", "answers": ["x"], "images": ["a.png", 3]}, "images[1] is 3, expected text"),
    ({"question": "q?", "answers": ["x"], "images": ["a.png", "b.png"]}, "image 'b.png': not found under "),
    ({**GOOD, "image": "."}, "image '.': not found under "),
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
    assert capsys.readouterr().err == f"data.jsonl:1: image 'no.png': not found under {folder}\n"


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


def test_pictures_are_read_with_the_limits_of_any_picture_from_outside(folder, monkeypatch):
    frames = [Image.new("RGB", (4, 4), (i * 90, 0, 0)) for i in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (4, 4)).save(folder / "page.eps")  # Pillow would call Ghostscript for it
    (folder / "page.eps").rename(folder / "page.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    names, lines = ("a.png", "film.gif", "page.png"), []
    rows = [{"image": name, "question": "q?", "answers": None} for name in names]
    assert list(read_jsonl(write(folder, *rows), report=lines.append)) == []
    reasons = ("has 6 x 4 pixels, the limit is 23", "has 3 frames or pages", "not a picture of a known format")
    for number, (name, reason, line) in enumerate(zip(names, reasons, lines, strict=True), start=1):
        assert line.startswith(f"data.jsonl:{number}: image {name!r}: {reason}"), line


@pytest.fixture
def film(folder):
    """A file of twelve grey frames, each lighter than the one before."""
    write_film(folder / "a.mkv", [np.full((16, 16, 3), 20 * level, np.uint8) for level in range(12)])
    return folder


def test_a_row_may_show_a_video(film):
    row = {"video": "a.mkv", "question": "what?", "answers": ["a cat"]}
    usual, some = read_jsonl(write(film, row, row | {"frames": 3}), on_error="raise")
    assert usual.clip.frames.shape == (8, 16, 16, 3) and usual.shown is usual.clip
    assert some.clip.frames[:, 0, 0, 0].tolist() == [40, 120, 200] and some.clip.seconds.tolist() == [0.5, 1.5, 2.5]
    assert some.image[0, 0, 0] == 120 and some.clip.total == 12 and some.family == usual.family


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"video": "gone.mkv"}, "video 'gone.mkv': not found under"),
        ({"video": "data.jsonl"}, "video 'data.jsonl': not a video of a known format"),
        ({"video": 3}, "video is 3, expected text"),
        ({"video": "a.mkv", "image": "a.png"}, "give either a video or pictures, not both"),
        ({"video": "a.mkv", "frames": 0}, "frames is 0, expected a whole number above 0"),
        ({"image": "a.png", "frames": 4}, "frames are given, and no video"),
    ],
)
def test_a_bad_video_row_is_one_line_with_its_number(film, row, reason):
    said = []
    assert not list(read_jsonl(write(film, row | {"question": "what?", "answers": None}), report=said.append))
    assert len(said) == 1 and said[0].startswith("data.jsonl:1: ") and reason in said[0] and "\n" not in said[0]

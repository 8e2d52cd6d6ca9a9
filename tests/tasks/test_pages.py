"""Reading, documents, charts and digits: answers stand on the page."""

import pytest

from foveate.tasks import charts
from foveate.tasks.base import DENSE_WHAT
from foveate.tasks.digits import legible, scans, scans_of
from foveate.tasks.registry import TASKS, regime_sample

pytestmark = pytest.mark.fast


def written(sample):
    """The characters on the picture according to its labels."""
    return {DENSE_WHAT[number] for number in set(sample.dense[..., 0].ravel().tolist())}


@pytest.mark.parametrize("regime", ["reading", "tables", "receipts", "forms", "digits"])
def test_every_answer_is_on_the_picture(regime):
    for index in range(30):
        sample = regime_sample(regime, "host-train", index)
        shown = written(sample)
        for turn in sample.turns:
            if turn.template != "count_digits":
                # i and l are narrower than a label cell and may lose it to their neighbours
                assert set(turn.answers[0]) - set("il1") <= shown, (sample.id, turn)


def test_reading_asks_for_the_number_only_when_there_is_one():
    task = TASKS["reading"]
    for index in range(120):
        programme, sample = task.find("test", index)[0], task.sample("test", index)
        texts = [text for text, *_ in programme["lines"]]
        numbers = [text for text in texts if text.isdigit()]
        for turn in sample.turns:
            if turn.template == "number_written":
                assert turn.answers == tuple(numbers) and len(numbers) == 1
            if turn.template == "written_at":
                assert turn.answers == ((texts[0] if "top" in turn.question else texts[-1]),)
            if turn.template.endswith("_on_plate"):
                (plate,) = (line for line in programme["lines"] if line[2] and f" {line[2]} " in turn.question)
                assert turn.answers == (plate[0],)
        assert all(2 <= len(text) <= 6 for text in texts)


def test_table_answers_are_the_cell_at_row_and_column():
    task = TASKS["documents"]
    for index in range(0, 120, 3):
        programme, sample = task.find("calibration", index)[0], task.sample("calibration", index)
        assert sample.regime == "tables"
        table = {
            (row, column): str(value)
            for row, values in zip(programme["rows"], programme["values"], strict=True)
            for column, value in zip(programme["columns"], values, strict=True)
        }
        for turn in sample.turns:
            words = turn.question.rstrip("?").split()
            if turn.template == "cell_of":
                ((row, column),) = (key for key in table if key[0] in words and key[1] in words)
                assert turn.answers == (table[row, column],)
            else:
                assert turn.answers == tuple(value for (row, _), value in table.items() if row in words)


def test_receipts_add_up():
    task = TASKS["documents"]
    for index in range(1, 90, 3):
        programme, sample = task.find("test", index)[0], task.sample("test", index)
        prices = dict(zip(programme["items"], map(str, programme["prices"]), strict=True))
        for turn in sample.turns:
            if turn.template == "total":
                assert turn.answers == (str(sum(map(int, prices.values()))),)
            else:
                (item,) = (name for name in prices if name in turn.question.rstrip("?").split())
                assert turn.answers == (prices[item],)


def test_forms_answer_with_the_value_behind_the_key():
    task = TASKS["documents"]
    for index in range(2, 90, 3):
        programme, sample = task.find("test", index)[0], task.sample("test", index)
        pairs = dict(zip(programme["keys"], programme["values"], strict=True))
        for turn in sample.turns:
            (key,) = (key for key in pairs if key in turn.question.rstrip("?").split())
            assert turn.answers == (pairs[key],)


def test_charts_name_the_extreme_bars_only_when_they_stand_out():
    task, asked = TASKS["charts"], 0
    for index in range(120):
        programme, sample = task.find("host-train", index)[0], task.sample("host-train", index)
        values = dict(zip(programme["labels"], programme["values"], strict=True))
        for turn in sample.turns:
            if turn.template in ("highest", "lowest"):
                ordered = sorted(values, key=values.get, reverse=turn.template == "highest")
                assert turn.answers == (ordered[0],)
                assert abs(values[ordered[0]] - values[ordered[1]]) >= 0.07 * max(values.values())
                asked += 1
            elif turn.template == "value_of":
                (label,) = (name for name in values if name in turn.question.rstrip("?").split())
                assert turn.answers == (str(values[label]),)
        if programme["step"]:
            assert all(value % programme["step"] == 0 for value in values.values())
    assert asked > 60


@pytest.mark.parametrize("kind", ["lying", "upright"])
def test_bars_are_as_long_as_their_values(kind, monkeypatch):
    task, boxes, checked = TASKS["charts"], [], 0
    plain = charts._bar

    def spy(canvas, number, box, colour):
        boxes.append(box)
        plain(canvas, number, box, colour)

    monkeypatch.setattr(charts, "_bar", spy)
    for index in range(40):
        programme = task.find("host-train", index)[0]
        if programme["kind"] != kind:
            continue
        boxes.clear()
        task.sample("host-train", index)
        along = 0 if kind == "lying" else 1
        lengths = [box[along + 2] - box[along] for box in boxes]
        scale = lengths[0] / programme["values"][0]
        assert lengths == pytest.approx([scale * value for value in programme["values"]])
        assert all(0 <= edge <= 96 for box in boxes for edge in box)
        # a step of the numbered axis, or the longest bar, can be seen
        assert scale * (programme["step"] or max(programme["values"])) >= 7
        checked += 1
    assert checked > 10


class TestDigits:
    def test_illegible_scans_are_left_out(self):
        images, digits = scans()
        clear = legible(images, digits)
        assert images.shape == (1797, 8, 8) and 0.7 < clear.mean() < 0.9
        assert images[clear].reshape(-1, 64).mean(axis=1).max() < 0.4 * 255
        used = [number for numbers in scans_of("test").values() for number in numbers]
        assert clear[used].all()
        assert all(digits[number] == digit for digit, numbers in scans_of("test").items() for number in numbers)

    def test_places_are_the_outermost_digits(self):
        task = TASKS["digits"]
        for index in range(150):
            programme, sample = task.find("test", index)[0], task.sample("test", index)
            values = programme["digits"]
            for turn in sample.turns:
                if turn.template == "count_digits":
                    assert turn.answers == (str(len(values)),)
                elif turn.template == "number_written":
                    assert turn.answers == ("".join(map(str, values)),)
                elif programme["layout"] == "row":
                    assert turn.answers == (str(values[0] if "left" in turn.question else values[-1]),)
                else:
                    places = [divmod(cell, 3) for cell in programme["cells"]]  # (row, column)
                    axis = 0 if "top" in turn.question or "bottom" in turn.question else 1
                    end = min if "top" in turn.question or "left" in turn.question else max
                    edge = end(place[axis] for place in places)
                    found = [v for v, place in zip(values, places, strict=True) if place[axis] == edge]
                    assert turn.answers == (str(found[0]),) and len(found) == 1

    def test_the_task_says_when_its_data_are_missing(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert TASKS["digits"].available() == "scikit-learn with its digits data file is not installed"

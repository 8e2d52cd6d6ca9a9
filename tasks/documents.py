"""Document pages: tables, receipts and key-value forms."""

from __future__ import annotations

import random

from foveate.tasks.base import IMAGE_SIZE
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import INKS, MIN_FONT, Canvas, text_width
from foveate.tasks.words import CITIES, DAYS, HEADERS, ITEMS, KEYS, LABELS

GAP = 3  # px between the columns of a table
MARGIN = 2  # px at the edges of a page
NARROW_HEADERS = [word for word in HEADERS if not set(word) & set("mwn")]
NARROW_LABELS = [word for word in LABELS if len(word) == 3 and not set(word) & set("mw")]
LISTS = {"label": LABELS, "city": CITIES, "day": DAYS, "item": ITEMS}


class Documents(GeneratedTask):
    """Light pages in real fonts with two to five lines of text, ruled or plain."""

    name = "documents"
    regimes = ("tables", "receipts", "forms")

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        return getattr(self, f"_{regime}")(rng)

    def _tables(self, rng: random.Random) -> Programme:
        columns, rows = rng.randint(1, 3), rng.randint(2, 4)
        # four columns fill the page: no wide letters, so that the narrowest face of every split holds them
        heads, names = (NARROW_HEADERS, NARROW_LABELS) if columns == 3 else (HEADERS, LABELS)
        return {
            "columns": rng.sample(heads, columns),
            "rows": rng.sample(names, rows),
            "values": [[rng.randint(1, 99) for _ in range(columns)] for _ in range(rows)],
        }

    def _receipts(self, rng: random.Random) -> Programme:
        items = rng.sample(ITEMS, rng.randint(2, 4))
        return {"items": items, "prices": [rng.randint(1, 99) for _ in items]}

    def _forms(self, rng: random.Random) -> Programme:
        keys = rng.sample(sorted(KEYS), rng.randint(3, 5))
        return {"keys": keys, "values": [value_of(key, rng) for key in keys]}

    def lines(self, programme: Programme) -> list[list[str]]:
        """The page as rows of cells."""
        if "columns" in programme:
            body = zip(programme["rows"], programme["values"], strict=True)
            return [["", *programme["columns"]], *([row, *map(str, values)] for row, values in body)]
        if "items" in programme:
            prices = programme["prices"]
            body = [[item, str(price)] for item, price in zip(programme["items"], prices, strict=True)]
            return [*body, ["total", str(sum(prices))]]
        return [[f"{key}:", value] for key, value in zip(programme["keys"], programme["values"], strict=True)]

    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        rng, lines = canvas.rng, self.lines(programme)
        canvas.fill_ground((), light=True)
        face, size = fit_columns(canvas, lines)
        widths = column_widths(face, size, lines)
        step = min((IMAGE_SIZE - 2 * MARGIN) / len(lines), rng.uniform(1.25, 2.0) * size)
        step = max(step, min((IMAGE_SIZE - 2 * MARGIN) / len(lines), size + 2))
        top = rng.uniform(MARGIN, IMAGE_SIZE - MARGIN - step * len(lines))
        spare = IMAGE_SIZE - 2 * MARGIN - sum(widths) - GAP * (len(widths) - 1)
        gap = GAP + rng.uniform(0.2, 0.9) * max(0.0, spare) / len(widths)
        left = MARGIN + rng.uniform(0, max(0.0, IMAGE_SIZE - 2 * MARGIN - sum(widths) - gap * (len(widths) - 1)))
        colours = [rng.choice(INKS), rng.choice(INKS)]
        self._rules(canvas, len(lines), top, step)
        for number, line in enumerate(lines):
            baseline, x = round(top + step * (number + 0.5) + 0.36 * size), left
            for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
                # numbers of tables and receipts end at the right edge of their column, as on paper
                shift = width - text_width(face, size, cell) if column and "keys" not in programme else 0
                heading = column == 0 or (number == 0 and "columns" in programme)
                colour = colours[0] if heading else colours[1]
                canvas.parts[f"{number},{column}"] = canvas.text(x + shift, baseline, cell, face, size, colour)
                x += width + gap

    def _rules(self, canvas: Canvas, lines: int, top: float, step: float) -> None:
        """Ruled lines between the rows: none, all, or only the one that sets off header or total."""
        kind = canvas.rng.choice(("none", "all", "some"))
        tone = canvas.jitter((150, 150, 160), 20)
        for number in range(1, lines):
            if kind == "all" or (kind == "some" and number in (1, lines - 1)):
                y = round(top + step * number)
                canvas.draw.line((1, y, IMAGE_SIZE - 2, y), fill=tone)

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        return pick(self.every(programme), rng.randint(3, 5), rng)

    def every(self, programme: Programme) -> list[Ask]:
        """All questions about a page, each value's among them."""
        asks = []
        if "columns" in programme:
            for y, (row, values) in enumerate(zip(programme["rows"], programme["values"], strict=True), start=1):
                for x, (column, value) in enumerate(zip(programme["columns"], values, strict=True), start=1):
                    slots = {"column": column, "row": row}
                    asks.append(Ask("cell_of", slots, (str(value),), (f"{y},0", f"0,{x}"), (f"{y},{x}",)))
                if len(values) == 1:
                    asks.append(Ask("value_of", {"row": row}, (str(values[0]),), (f"{y},0",), (f"{y},1",)))
        elif "items" in programme:
            rows = len(programme["items"])
            asks = [Ask("total", {}, (str(sum(programme["prices"])),), (f"{rows},0",), (f"{rows},1",))]
            for y, (item, price) in enumerate(zip(programme["items"], programme["prices"], strict=True)):
                asks.append(Ask("price_of", {"row": item}, (str(price),), (f"{y},0",), (f"{y},1",)))
        else:
            for y, (key, value) in enumerate(zip(programme["keys"], programme["values"], strict=True)):
                asks.append(Ask("key_value", {"key": key}, (value,), (f"{y},0",), (f"{y},1",)))
        return asks

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        return ", ".join(" ".join(cell for cell in line if cell) for line in self.lines(programme))


def value_of(key: str, rng: random.Random) -> str:
    """What a form says behind a key."""
    kind = KEYS[key]
    if isinstance(kind, str):
        return rng.choice(LISTS[kind])
    if key == "date":
        return str(rng.randint(1, 31))
    if key == "year":
        return str(rng.randint(1950, 2049))
    return str(rng.randrange(10 ** (kind - 1), 10**kind))


def column_widths(face: str, size: int, lines: list[list[str]]) -> list[float]:
    """Width of every column in px."""
    return [max(text_width(face, size, line[column]) for line in lines) for column in range(len(lines[0]))]


def fit_columns(canvas: Canvas, lines: list[list[str]]) -> tuple[str, int]:
    """A face and a size (11 to 15 px) in which all columns fit beside each other; else the narrowest face."""
    tallest = min(15, int((IMAGE_SIZE - 2 * MARGIN) / len(lines)) - 2)
    wanted, best = canvas.rng.randint(MIN_FONT, max(MIN_FONT, tallest)), None
    for face in canvas.fonts():
        for size in range(wanted, MIN_FONT - 1, -1):
            need = sum(column_widths(face, size, lines)) + GAP * (len(lines[0]) - 1)
            if need <= IMAGE_SIZE - 2 * MARGIN:
                return face, size
        if best is None or need < best[0]:
            best = (need, face)
    return best[1], MIN_FONT

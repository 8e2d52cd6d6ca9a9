"""Bar charts with printed values or a numbered axis."""

from __future__ import annotations

import random

from foveate.tasks.base import COLOURS, IMAGE_SIZE, Box
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import MIN_FONT, PALETTE, Canvas, cap_height, text_width
from foveate.tasks.words import HEADERS, LETTERS

TICKS = 5  # a numbered axis ends at five steps


class Charts(GeneratedTask):
    """Three to five bars, upright or lying; each value is printed at its bar or ends on a numbered grid line."""

    name = "charts"
    regimes = ("charts",)

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        n, kind = rng.randint(3, 5), rng.choice(("upright", "lying"))
        axis = rng.random() < 0.4
        step = rng.choice((1, 2, 5, 10, 20)) if axis else 1
        values = [rng.randint(1, TICKS) * step for _ in range(n)] if axis else rng.sample(range(4, 100), n)
        words = n == 3 if kind == "upright" else True
        labels = rng.sample(HEADERS if words and rng.random() < 0.6 else LETTERS, n)
        same = rng.random() < 0.3
        colours = [rng.choice(COLOURS)] * n if same else rng.sample(COLOURS, n)
        return {"kind": kind, "step": step if axis else 0, "values": values, "labels": labels, "colours": colours}

    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        canvas.fill_ground(set(programme["colours"]))
        ink = canvas.ink(canvas.ground, ("black", "white"))
        shown = [*programme["labels"], *map(str, programme["values"])]
        width = (IMAGE_SIZE - 20) / len(shown) * 2 - 1 if programme["kind"] == "upright" else 28
        face, size = canvas.fit(shown, width, (MIN_FONT, 13))
        (self._upright if programme["kind"] == "upright" else self._lying)(canvas, programme, face, size, ink)

    def _upright(self, canvas: Canvas, programme: Programme, face: str, size: int, ink: str) -> None:
        values, step, rng = programme["values"], programme["step"], canvas.rng
        high = step * TICKS if step else max(values)
        floor, roof = IMAGE_SIZE - size - 4, 6 + cap_height(face, size) * (0 if step else 1)
        left = 6 + (text_width(face, size, str(high)) if step else 0)
        scale = (floor - roof) / high
        if step:
            for tick in range(TICKS + 1):
                y = floor - tick * step * scale
                canvas.draw.line((left, y, IMAGE_SIZE - 2, y), fill=canvas.jitter((140, 140, 140), 10))
                if tick % 2 == 1:
                    text = str(tick * step)
                    canvas.text(
                        left - 3 - text_width(face, size, text),
                        round(y + cap_height(face, size) / 2),
                        text,
                        face,
                        size,
                        ink,
                    )
        pitch = (IMAGE_SIZE - 3 - left) / len(values)
        thick = pitch * rng.uniform(0.5, 0.75)
        for number, (label, value, colour) in enumerate(
            zip(programme["labels"], values, programme["colours"], strict=True)
        ):
            middle, top = left + pitch * (number + 0.5), floor - value * scale
            _bar(canvas, number, (middle - thick / 2, top, middle + thick / 2, floor), colour)
            x = middle - text_width(face, size, label) / 2
            canvas.parts[f"label {number}"] = canvas.text(x, IMAGE_SIZE - 4, label, face, size, ink)
            if not step:
                text = str(value)
                x = middle - text_width(face, size, text) / 2
                canvas.parts[f"value {number}"] = canvas.text(x, round(top - 2), text, face, size, ink)
        _axis(canvas, (left, floor, IMAGE_SIZE - 2, floor), ink)

    def _lying(self, canvas: Canvas, programme: Programme, face: str, size: int, ink: str) -> None:
        values, step, rng = programme["values"], programme["step"], canvas.rng
        high = step * TICKS if step else max(values)
        left = 5 + max(text_width(face, size, label) for label in programme["labels"])
        end = text_width(face, size, str(high))
        right = IMAGE_SIZE - (3 + end / 2 if step else 5 + end)
        bottom = IMAGE_SIZE - (size + 3 if step else 3)
        scale = (right - left) / high
        if step:
            for tick in range(TICKS + 1):
                x = left + tick * step * scale
                canvas.draw.line((x, 2, x, bottom), fill=canvas.jitter((140, 140, 140), 10))
                if tick % 2 == 1:
                    text = str(tick * step)
                    canvas.text(x - text_width(face, size, text) / 2, IMAGE_SIZE - 3, text, face, size, ink)
        pitch = (bottom - 2) / len(values)
        thick = pitch * rng.uniform(0.5, 0.75)
        for number, (label, value, colour) in enumerate(
            zip(programme["labels"], values, programme["colours"], strict=True)
        ):
            middle, tip = 2 + pitch * (number + 0.5), left + value * scale
            _bar(canvas, number, (left, middle - thick / 2, tip, middle + thick / 2), colour)
            baseline = round(middle + cap_height(face, size) / 2)
            x = left - 3 - text_width(face, size, label)
            canvas.parts[f"label {number}"] = canvas.text(x, baseline, label, face, size, ink)
            if not step:
                canvas.parts[f"value {number}"] = canvas.text(tip + 3, baseline, str(value), face, size, ink)
        _axis(canvas, (left, 2, left, bottom), ink)

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        labels, values, colours = programme["labels"], programme["values"], programme["colours"]
        kind = "bar" if programme["step"] else "value"  # on a numbered axis the bar's end tells the value
        asks = [
            Ask("value_of", {"row": label}, (str(value),), (f"label {n}",), (f"{kind} {n}",))
            for n, (label, value) in enumerate(zip(labels, values, strict=True))
        ]
        if len(set(colours)) == len(colours):
            asks += [
                Ask("colour_of_bar", {"row": label}, (colour,), (f"label {n}",), (f"bar {n}",))
                for n, (label, colour) in enumerate(zip(labels, colours, strict=True))
            ]
        order = sorted(range(len(values)), key=values.__getitem__)
        margin = 0.07 * values[order[-1]]  # a difference in height that can be seen
        if values[order[-1]] - values[order[-2]] >= margin:
            asks.append(_extreme("highest", order[-1], labels))
        if values[order[1]] - values[order[0]] >= margin:
            asks.append(_extreme("lowest", order[0], labels))
        return pick(asks, rng.randint(3, 5), rng)

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        rows = zip(programme["labels"], programme["values"], programme["colours"], strict=True)
        return "a chart of " + ", ".join(f"{label} {value} {colour}" for label, value, colour in rows)


def _extreme(template: str, number: int, labels: list[str]) -> Ask:
    """Which bar is the highest or the lowest: seen at the bar, read at its label."""
    return Ask(template, {}, (labels[number],), (f"bar {number}",), (f"label {number}",))


def _bar(canvas: Canvas, number: int, box: Box, colour: str) -> None:
    left, top, right, bottom = (round(edge) for edge in box)
    canvas.draw.rectangle((left, top, right - 1, bottom - 1), fill=canvas.jitter(PALETTE[colour]))
    canvas.label((left, top, right, bottom), "bar", colour)
    canvas.parts[f"bar {number}"] = ((left, top, right, bottom),)


def _axis(canvas: Canvas, ends: tuple[float, float, float, float], ink: str) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in ends)
    canvas.draw.line((x0, y0, x1, y1), fill=PALETTE[ink])
    canvas.label((x0, y0, x1 + 1, y1 + 1), "line", ink)

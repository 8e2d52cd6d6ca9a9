"""Reading: words and numbers on signs, one to four a picture."""

from __future__ import annotations

import random

from foveate.tasks.base import COLOURS, IMAGE_SIZE
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import MIN_FONT, Canvas, cap_height, text_width
from foveate.tasks.words import WRITTEN


class Reading(GeneratedTask):
    """One to four strings below each other, bare or on coloured plates, 11 to 22 px."""

    name = "reading"
    regimes = ("reading",)

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        n = rng.choice((1, 2, 2, 3, 4))
        slots = sorted(rng.sample(range(max(n, 3)), n))
        plates = rng.sample(COLOURS, n)
        # one number among words, or one word among numbers, can be asked for without saying where it is
        odd, kind = rng.randrange(n), rng.choice(("word", "number"))
        lines = []
        for number in range(n):
            is_word = (kind == "word") == (number == odd) if rng.random() < 0.7 else rng.random() < 0.5
            text = (
                rng.choice(WRITTEN)
                if is_word
                else str(rng.randrange(10 ** (size := rng.randint(1, 4)), 10 ** (size + 1)))
            )
            lines.append([text, slots[number], plates[number] if rng.random() < 0.6 else None])
        return {"lines": lines, "rows": max(n, 3)}

    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        rng, lines, step = canvas.rng, programme["lines"], IMAGE_SIZE / programme["rows"]
        canvas.fill_ground({plate for _, _, plate in lines if plate})
        for number, (text, slot, plate) in enumerate(lines):
            face, size = canvas.fit([text], IMAGE_SIZE - 14, (MIN_FONT, min(22, int(step * 0.72))))
            width, height = text_width(face, size, text), cap_height(face, size)
            tall = size + 4
            x = rng.uniform(5, IMAGE_SIZE - 5 - width)
            middle = step * (slot + 0.5) + rng.uniform(-1, 1) * max(0.0, (step - tall) / 2)
            ground = canvas.ground
            if plate:
                top = round(middle - tall / 2)
                ground = canvas.plate((round(x - 4), top, round(x + width + 4), top + tall), plate)
            baseline = round(middle + height / 2 - 0.06 * size)
            canvas.parts[str(number)] = canvas.text(x, baseline, text, face, size, canvas.ink(ground))

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        lines = programme["lines"]
        numbers = [n for n, (text, *_) in enumerate(lines) if text.isdigit()]
        words = [n for n, (text, *_) in enumerate(lines) if not text.isdigit()]

        def about(template: str, slots: dict[str, str], number: int) -> Ask:
            """A question whose answer is the text of that line."""
            return Ask(template, slots, (lines[number][0],), (str(number),), (str(number),))

        asks = []
        if len(numbers) == 1:
            asks.append(about("number_written", {}, numbers[0]))
        if len(words) == 1:
            asks.append(about("word_written", {}, words[0]))
        if len(lines) == 1:
            asks.append(about("text_written", {}, 0))
        else:
            asks.append(about("written_at", {"place": "top"}, 0))
            asks.append(about("written_at", {"place": "bottom"}, len(lines) - 1))
        for number, (text, _, plate) in enumerate(lines):
            if plate:
                asks.append(about("number_on_plate" if text.isdigit() else "word_on_plate", {"colour": plate}, number))
        return pick(asks, rng.randint(3, 5), rng)

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        return ", ".join(f"{text} on a {plate} plate" if plate else text for text, _, plate in programme["lines"])

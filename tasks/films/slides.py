"""Pages that turn: a few slides one after the other, each with one number or word on a coloured plate."""

from __future__ import annotations

import random

from foveate.tasks.base import COLOURS, IMAGE_SIZE
from foveate.tasks.films.film import Film
from foveate.tasks.films.script import Script
from foveate.tasks.generated import Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import Canvas, cap_height, text_width
from foveate.tasks.words import WRITTEN

FONT = (24, 34)  # px
SHORT = [word for word in WRITTEN if len(word) <= 4 and not set(word) & set("mw")]
PAGES = (2, 5)


class Slides(Script):
    """Two to five pages; each stands for at least one frame, no two show the same."""

    name = "slides"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        n = rng.randint(*PAGES)
        texts: list[str] = []
        while len(texts) < n:
            word = rng.random() < 0.4
            text = rng.choice(SHORT) if word else str(rng.randrange(1, 10 ** rng.randint(1, 3)))
            texts += [text] * (text not in texts)
        spare, long = frames - n, [1] * n
        for _ in range(spare):  # every frame belongs to a page
            long[rng.randrange(n)] += 1
        starts = [sum(long[:page]) for page in range(n)]
        return {"texts": texts, "plates": rng.sample(COLOURS, n), "starts": starts}

    def paint(self, film: Film, programme: Programme) -> None:
        """See `Script.paint`."""
        film.roll((), light=True)
        stops = [*programme["starts"][1:], film.length]
        for page, (text, plate) in enumerate(zip(programme["texts"], programme["plates"], strict=True)):
            frames = range(programme["starts"][page], stops[page])
            canvas = film.frames[frames[0]]
            boxes = _write(canvas, text, plate)
            for t in frames[1:]:
                film.frames[t] = canvas.copy()
            film.parts[f"page {page}"] = tuple((*box, frames[len(frames) // 2]) for box in boxes)
            x, y, *_ = boxes[0]
            film.parts[f"centre of page {page}"] = ((x, y, x + 8, y + 8, frames[0]),)

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        texts, n = programme["texts"], len(programme["texts"])
        pages = Ask("count_pages", {}, (str(n),), at=tuple(f"centre of page {page}" for page in range(n)))
        asks = []
        for which, page in (("first", 0), ("last", n - 1)):
            asks.append(Ask("written_on", {"which": which}, (texts[page],), at=(f"page {page}",)))
        for page, (text, plate) in enumerate(zip(texts, programme["plates"], strict=True)):
            kind, look = "number" if text.isdigit() else "word", (f"page {page}",)
            asks.append(Ask(f"{kind}_on_page", {"page": str(page + 1)}, (text,), look, look))
            asks.append(Ask(f"{kind}_on_plate", {"colour": plate}, (text,), look, look))
        asks = pick(asks, rng.randint(2, 3), rng)
        if (
            rng.random() < 0.5
        ):  # not picked among the others: of short films there would be more, and "2" the best guess
            asks.insert(rng.randrange(len(asks) + 1), pages)
        return asks

    def caption(self, programme: Programme) -> str:
        """See `Script.caption`."""
        pages = zip(programme["texts"], programme["plates"], strict=True)
        return ", ".join(f"{text} on a {plate} plate" for text, plate in pages)


def _write(canvas: Canvas, text: str, plate: str) -> tuple:
    """Writes large on a plate; the boxes of the characters."""
    face, size = canvas.fit([text], IMAGE_SIZE - 14, FONT)
    width, height, tall = text_width(face, size, text), cap_height(face, size), size + 6
    x = canvas.rng.uniform(5, IMAGE_SIZE - 5 - width)
    middle = canvas.rng.uniform(tall / 2 + 1, IMAGE_SIZE - 1 - tall / 2)
    box = (round(x - 4), round(middle - tall / 2), round(x + width + 4), round(middle + tall / 2))
    ground = canvas.plate(box, plate)
    return canvas.text(x, round(middle + height / 2 - 0.06 * size), text, face, size, canvas.ink(ground))

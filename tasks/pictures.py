"""Pictures: clip art of everyday things on close crops of photographs or on plain grounds."""

from __future__ import annotations

import random
from collections import Counter

from foveate.tasks.base import IMAGE_SIZE, PICTURES
from foveate.tasks.clipart import missing_photos, photo_ground, picture, pictures_of, tint
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import Canvas
from foveate.tasks.scenes import WHERE, beside, centres, plural

SIZES = {1: (36, 60), 2: (30, 43), 3: (24, 29)}  # px by cells per side, end excluded; even, for the cache


class Pictures(GeneratedTask):
    """One to six things; difficulty comes with their number and size, the ground and pictures never seen before."""

    name = "pictures"
    regimes = ("pictures",)

    def available(self) -> str | None:
        """See `Task.available`."""
        missing = missing_photos()
        return f"photograph {missing[0]} is not installed (scikit-image, scikit-learn)" if missing else None

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        kind = rng.choices(("one", "count", "mixed"), (0.25, 0.35, 0.4))[0]
        if kind == "one":
            whats = [rng.choice(PICTURES)]
        elif kind == "count":
            k = rng.randint(1, 6)
            n = rng.randint(max(k, 2), 6)
            same, *others = rng.sample(PICTURES, 3)
            whats = [same] * k + [rng.choice(others) for _ in range(n - k)]
        else:
            whats = rng.sample(PICTURES, rng.randint(2, 6))
        side = 1 if len(whats) == 1 else 2 if len(whats) <= 4 and rng.random() < 0.6 else 3
        if side == 1:  # a coarse place instead of a cell
            return {"side": 1, "things": [[whats[0], rng.randrange(9)]]}
        cells = rng.sample(range(side * side), len(whats))
        things = sorted([what, cell] for what, cell in zip(whats, cells, strict=True))
        if kind == "mixed" and not self._beside_asks(things, side, rng):
            return None
        return {"side": side, "things": things} | ({"counted": whats[0]} if kind == "count" else {})

    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        rng, side = canvas.rng, programme["side"]
        if rng.random() < 0.6:
            canvas.image.paste(photo_ground(canvas.split, rng))
        else:
            canvas.fill_ground(())
        for part, (what, cell) in enumerate(programme["things"]):
            size = rng.randrange(*SIZES[side], 2)
            number = rng.choice(pictures_of(canvas.split, what))
            image, mask = picture(number, size, rng.random() < 0.5)
            centre = []
            for axis, extent in enumerate(image.size):
                step = IMAGE_SIZE / (3 if side == 1 else side)
                place = step * ((cell % 3, cell // 3)[axis] if side == 1 else (cell % side, cell // side)[axis])
                slack = (step - 1) / 2 if side == 1 else max(0.0, (step - extent) / 2)
                middle = place + step / 2 + rng.uniform(-slack, slack)
                centre.append(min(max(middle, extent / 2), IMAGE_SIZE - extent / 2))
            left, top = (round(middle - extent / 2) for middle, extent in zip(centre, image.size, strict=True))
            tinted = tint(image, rng)
            canvas.image.paste(tinted, (left, top), tinted)
            canvas.label_mask(mask, left, top, what, "none")
            canvas.part(str(part), (left, top, left + image.width, top + image.height))

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        things, side = programme["things"], programme["side"]
        counts = Counter(what for what, _ in things)
        asks, every = [], tuple(map(str, range(len(things))))
        if len(things) == 1:
            asks.append(Ask("what_shown", {}, (things[0][0],), at=every))
        else:
            asks += self._beside_asks(things, side, rng)
            if "counted" in programme:  # drawn with its number: 1 to 6 are equally likely
                what = programme["counted"]
                at = centres(n for n, thing in enumerate(things) if thing[0] == what)
                asks.append(Ask("count_of", {"things": plural(what)}, (str(counts[what]),), at=at))
        asks.append(Ask("count_objects", {}, (str(len(things)),), at=centres(range(len(things)))))
        if rng.random() < 0.35:
            true = rng.random() < 0.5
            options = sorted(counts) if true else [what for what in PICTURES if what not in counts]
            thing = rng.choice(options)
            at = tuple(n for n in every if things[int(n)][0] == thing)
            asks.append(Ask("is_there", {"thing": thing}, ("yes" if true else "no",), at=at))
        rng.shuffle(asks)
        return asks

    def _beside_asks(self, things: list, side: int, rng: random.Random) -> list[Ask]:
        """At most three questions about what stands beside a thing that is there once."""
        counts = Counter(what for what, _ in things)
        cells = [(cell % side, cell // side) for _, cell in things]
        asks = []
        for number, (what, _) in enumerate(things):
            for where in WHERE if counts[what] == 1 else ():
                found = beside(cells, number, where)
                if found is not None:
                    slots = {"where": where, "thing": what}
                    asks.append(Ask("what_beside", slots, (things[found][0],), (str(number),), (str(found),)))
        return pick(asks, 3, rng)

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        counts = Counter(what for what, _ in programme["things"])
        return ", ".join(f"{n} {plural(what)}" if n > 1 else f"a {what}" for what, n in sorted(counts.items()))

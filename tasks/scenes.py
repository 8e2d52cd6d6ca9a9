"""Scenes of coloured shapes: a single object, search among several, counting, and relations."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from foveate.tasks.base import COLOURS, IMAGE_SIZE, SHAPES
from foveate.tasks.generated import GeneratedTask, Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.render import Canvas

Thing = list  # [colour, shape, cell, size bucket], plain data inside a programme

SIZES = {  # px: smallest and largest of each bucket
    "single": ((16, 22), (23, 30), (31, 38), (39, 48)),
    "search": ((14, 16), (17, 19), (20, 22)),
    "counting": ((14, 16), (17, 19), (20, 21)),
    "relations": ((15, 18), (19, 22), (23, 25)),
}
CELLS = {"single": 6, "search": 4, "counting": 4, "relations": 3}  # cells per side of the coarse grid
WHERE = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def plural(word: str) -> str:
    """The plural of a shape or class name."""
    if word.endswith(("fish", "sheep")):
        return word
    if word.endswith(("s", "x", "sh", "ch")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def beside(cells: list[tuple[int, int]], reference: int, where: str) -> int | None:
    """Which cell's object stands `where` of the reference object, if a person would name exactly one.

    That is the nearest in the same row (or column), with every other object on that side clearly further away.

    Args:
        cells: (column, row) of every object.
        reference: index of the object that the question starts from.
        where: a key of WHERE.
    """
    dx, dy = WHERE[where]
    x0, y0 = cells[reference]
    side = []
    for number, (x, y) in enumerate(cells):
        ahead = (x - x0) * dx + (y - y0) * dy
        across = abs((x - x0) * dy) + abs((y - y0) * dx)
        if ahead > 0:
            side.append((ahead * ahead + across * across, across, number))
    side.sort()
    if not side or side[0][1] != 0 or (len(side) > 1 and side[1][0] < 1.9 * side[0][0]):
        return None
    return side[0][2]


class Scenes(GeneratedTask):
    """Coloured shapes on varied grounds; difficulty comes with size, number of objects, grain and contrast."""

    name = "scenes"
    regimes = ("single", "search", "counting", "relations")

    def programme(self, regime: str, rng: random.Random) -> Programme | None:
        """See `GeneratedTask.programme`."""
        pairs = getattr(self, f"_{regime}")(rng)
        if pairs is None:
            return None
        cells = rng.sample(range(CELLS[regime] ** 2), len(pairs))
        things = sorted(
            [c, s, cell, rng.randrange(len(SIZES[regime]))] for (c, s), cell in zip(pairs, cells, strict=True)
        )
        programme = {"things": things}
        if regime == "relations" and len(self._relation_asks(things, rng)) < 2:
            return None
        return programme

    def _single(self, rng: random.Random) -> list[tuple[str, str]]:
        return [(rng.choice(COLOURS), rng.choice(SHAPES))]

    def _search(self, rng: random.Random) -> list[tuple[str, str]] | None:
        pairs = [(rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(rng.randint(3, 9))]
        return pairs if len(_unique(pairs)) >= 2 else None

    def _counting(self, rng: random.Random) -> list[tuple[str, str]]:
        """`k` of `n` objects share the shape that will be asked about, `m` the colour: small counts do not dominate."""
        n = rng.randint(1, 8)
        k, m = rng.randint(1, n), rng.randint(1, n)
        shape, *others = rng.sample(SHAPES, rng.randint(2, 4))
        colour, *tints = rng.sample(COLOURS, rng.randint(2, 4))
        shapes = [shape] * k + [rng.choice(others) for _ in range(n - k)]
        colours = [colour] * m + [rng.choice(tints) for _ in range(n - m)]
        rng.shuffle(colours)
        return list(zip(colours, shapes, strict=True))

    def _relations(self, rng: random.Random) -> list[tuple[str, str]]:
        return rng.sample([(c, s) for c in COLOURS for s in SHAPES], rng.randint(2, 5))

    def paint(self, canvas: Canvas, programme: Programme) -> None:
        """See `GeneratedTask.paint`."""
        regime, rng = programme["regime"].split("/")[1], canvas.rng
        side = CELLS[regime]
        canvas.fill_ground({thing[0] for thing in programme["things"]})
        for number, (colour, shape, cell, bucket) in enumerate(programme["things"]):
            size = rng.randint(*SIZES[regime][bucket])
            column, row = cell % side, cell // side
            if regime == "single":  # the cells share out the places where the whole object fits
                step = (IMAGE_SIZE - size) / side
                centre = tuple(size / 2 + step * (k + rng.random()) for k in (column, row))
            else:
                step = IMAGE_SIZE / side
                slack = max(0.0, (step - size) / 2 - 1)
                centre = tuple(step * (k + 0.5) + rng.uniform(-slack, slack) for k in (column, row))
            canvas.part(str(number), canvas.shape(shape, colour, centre, size))

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `GeneratedTask.asks`."""
        regime, things = programme["regime"].split("/")[1], programme["things"]
        pairs = [(thing[0], thing[1]) for thing in things]
        if regime == "single":
            (colour, shape) = pairs[0]
            asks = [
                Ask("colour_of_object", {}, (colour,), at=("0",)),
                Ask("shape_of_object", {}, (shape,), at=("0",)),
                Ask("colour_of", {"shape": shape}, (colour,), ("0",), ("0",)),
                Ask("shape_of", {"colour": colour}, (shape,), ("0",), ("0",)),
            ]
            return pick(asks, rng.randint(2, 4), rng)
        if regime == "search":
            return pick(_unique(pairs), rng.randint(3, 5), rng)
        if regime == "counting":
            return self._count_asks(pairs, rng)
        return self._relation_asks(things, rng)

    def _count_asks(self, pairs: list[tuple[str, str]], rng: random.Random) -> list[Ask]:
        colours, shapes = Counter(c for c, _ in pairs), Counter(s for _, s in pairs)
        asks = [Ask("count_objects", {}, (str(len(pairs)),), at=centres(range(len(pairs))))]
        # the larger groups first: asking about every group would make "1" the best guess
        for counts, names, template, slot in (
            (shapes, SHAPES, "count_of", "things"),
            (colours, COLOURS, "count_colour", "colour"),
        ):
            name = (
                max(sorted(counts), key=lambda key: counts[key]) if rng.random() < 0.75 else rng.choice(sorted(counts))
            )
            if rng.random() < 0.05 and len(counts) < len(names):
                name = rng.choice([other for other in names if other not in counts])
            slots = {slot: plural(name) if slot == "things" else name}
            at = centres(number for number, pair in enumerate(pairs) if name in pair)
            asks.append(Ask(template, slots, (str(counts[name]),), at=at))
        rng.shuffle(asks)
        return asks

    def _relation_asks(self, things: list[Thing], rng: random.Random) -> list[Ask]:
        cells = [(thing[2] % CELLS["relations"], thing[2] // CELLS["relations"]) for thing in things]
        asks = []
        for number, (colour, shape, *_) in enumerate(things):
            for where in WHERE:
                found = beside(cells, number, where)
                if found is not None:
                    slots = {"where": where, "colour": colour, "shape": shape}
                    looks = (str(number),), (str(found),)
                    asks.append(Ask("shape_beside", slots, (things[found][1],), *looks))
                    asks.append(Ask("colour_beside", slots, (things[found][0],), *looks))
        asks = pick(asks, rng.randint(2, 4), rng)
        if len(asks) >= 2 and rng.random() < 0.6:
            asks.insert(rng.randrange(len(asks) + 1), self._yes_no(things, cells, rng))
        return asks

    def _yes_no(self, things: list[Thing], cells: list[tuple[int, int]], rng: random.Random) -> Ask:
        """The answer is drawn first, then a pair of objects that gives it."""
        true = rng.random() < 0.5
        options = []
        for where, (dx, dy) in WHERE.items():
            for a, (xa, ya) in enumerate(cells):
                for b, (xb, yb) in enumerate(cells):
                    ahead = (xa - xb) * dx + (ya - yb) * dy
                    if (ahead > 0) if true else (ahead < 0):
                        options.append((a, b, where))
        a, b, where = rng.choice(options)
        slots = {"colour": things[a][0], "shape": things[a][1], "where": where}
        slots |= {"colour2": things[b][0], "shape2": things[b][1]}
        return Ask("is_beside", slots, ("yes" if true else "no",), (str(a), str(b)), (str(a), str(b)))

    def caption(self, programme: Programme) -> str:
        """See `GeneratedTask.caption`."""
        counts = Counter((thing[0], thing[1]) for thing in programme["things"])
        parts = [f"{n} {c} {plural(s)}" if n > 1 else f"a {c} {s}" for (c, s), n in sorted(counts.items())]
        return ", ".join(parts)


def _unique(pairs: list[tuple[str, str]]) -> list[Ask]:
    """Every question about an attribute that exactly one object has."""
    colours, shapes = Counter(c for c, _ in pairs), Counter(s for _, s in pairs)
    numbered = [(str(number), c, s) for number, (c, s) in enumerate(pairs)]
    asks = [Ask("colour_of", {"shape": s}, (c,), (n,), (n,)) for n, c, s in numbered if shapes[s] == 1]
    return asks + [Ask("shape_of", {"colour": c}, (s,), (n,), (n,)) for n, c, s in numbered if colours[c] == 1]


def centres(numbers: Iterable[int]) -> tuple[str, ...]:
    """The parts of the canvas that a count of the things with these numbers looks at."""
    return tuple(f"centre of {number}" for number in numbers)

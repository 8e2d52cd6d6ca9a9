"""Things that move, and a camera that does."""

from __future__ import annotations

import random

from foveate.tasks.base import IMAGE_SIZE
from foveate.tasks.films.film import CELLS, REACH, STEP, Place, Track, called, some_things, there, whole
from foveate.tasks.films.script import Script
from foveate.tasks.generated import Programme
from foveate.tasks.questions import Ask, pick
from foveate.tasks.scenes import WHERE, beside

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPANS = {1: (28, 42), 2: (20, 24)}  # things -> px that each moves from the first frame to the last
TRIES = 200  # draws of two ways that do not meet


def ends(number: int, track: Track) -> tuple[str, str]:
    """The parts that show a thing in its first and in its last frame."""
    times = there(track)
    return f"{number}@{times[0]}", f"{number}@{times[-1]}"


def apart(tracks: list[Track]) -> bool:
    """Whether no two things ever touch."""
    for k, one in enumerate(tracks):
        for other in tracks[:k]:
            for a, b in zip(one, other, strict=True):
                if a and b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) < 2 * REACH - 2:
                    return False
    return True


def ask_way(programme: Programme, number: int) -> Ask:
    """Which way a thing moves."""
    seen = ends(number, programme["tracks"][number])
    return Ask("way_of", called(programme["things"][number]), (programme["ways"][number],), seen, seen)


class Motion(Script):
    """One or two things that move steadily. Where they are in the middle frame says nothing about the way."""

    name = "motion"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        things = some_things(rng, rng.randint(1, 2))
        for _ in range(TRIES):
            ways = [rng.choice(sorted(WAYS)) for _ in things]
            tracks = [self._track(rng, WAYS[way], rng.randint(*SPANS[len(things)]), frames) for way in ways]
            if apart(tracks):
                return {"things": things, "tracks": tracks, "ways": ways}
        return None

    def _track(self, rng: random.Random, way: tuple[int, int], span: int, frames: int) -> Track:
        middle = frames // 2
        far = round(span * middle / (frames - 1)) + 1  # so far from the middle frame's place, whatever the way
        x, y = (rng.randint(REACH + far, IMAGE_SIZE - REACH - far) for _ in range(2))
        steps = [round(span * (t - middle) / (frames - 1)) for t in range(frames)]
        return [[x + way[0] * step, y + way[1] * step] for step in steps]

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        things, tracks, ways = programme["things"], programme["tracks"], programme["ways"]
        asks = [ask_way(programme, number) for number in range(len(things))]
        if len(things) == 1:
            asks.append(asks[0]._replace(template="way_of_object", slots={}))
        elif len(set(ways)) == 2:
            for number, way in enumerate(ways):
                seen = ends(number, tracks[number])
                asks.append(Ask("shape_going", {"way": way}, (things[number][1],), seen, seen))
                asks.append(Ask("colour_going", {"way": way}, (things[number][0],), seen, seen))
        return pick(asks, 4, rng)


class Mover(Script):
    """A camera that stands still, one to five things that do so too, and one that moves through free cells."""

    name = "mover"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        way, steps = rng.choice(sorted(WAYS)), rng.randint(1, 2)
        (dx, dy), (column, row) = WAYS[way], (rng.randrange(3), rng.randrange(3))
        if not (0 <= column + steps * dx < 3 and 0 <= row + steps * dy < 3):
            return None
        path = [(column + k * dx) + 3 * (row + k * dy) for k in range(steps + 1)]
        things = some_things(rng, rng.randint(2, 6))
        cells = rng.sample([cell for cell in range(9) if cell not in path], len(things) - 1)
        (x, y), last = CELLS[path[0]], frames - 1
        moves = [round(STEP * steps * t / last) for t in range(frames)]
        tracks = [[[x + dx * move, y + dy * move] for move in moves], *(whole(cell, frames) for cell in cells)]
        return {"things": things, "tracks": tracks, "ways": [way]}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        (colour, shape, _), tracks = programme["things"][0], programme["tracks"]
        seen = ends(0, tracks[0])
        asks = [
            ask_way(programme, 0),
            Ask("shape_moving", {}, (shape,), at=seen),
            Ask("colour_moving", {}, (colour,), at=seen),
            Ask("count_objects", {}, (str(len(tracks)),), at=tuple(f"centre of {n}@0" for n in range(len(tracks)))),
        ]
        return pick(asks, rng.randint(2, 4), rng)


class Panning(Script):
    """A camera that pans over things that stand still, as seen by who walks by: no frame shows all of them."""

    name = "panning"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        way, more = rng.choice(sorted(WAYS)), rng.randint(2, 4)
        (dx, dy), n = WAYS[way], rng.randint(2, 6)
        columns, rows = (3 + more, 3) if dx else (3, 3 + more)
        world = [[k % columns, k // columns] for k in rng.sample(range(columns * rows), n)]
        moves = [round(STEP * more * t / (frames - 1)) for t in range(frames)]
        if dx + dy < 0:
            moves.reverse()
        camera = [[move, 0] if dx else [0, move] for move in moves]
        middles = [[STEP // 2 + STEP * x, STEP // 2 + STEP * y] for x, y in world]
        tracks = [[_seen(middle, corner) for corner in camera] for middle in middles]
        return {"things": some_things(rng, n), "tracks": tracks, "camera": camera, "world": world, "ways": [way]}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        things, tracks, way = programme["things"], programme["tracks"], programme["ways"][0]
        n = len(things)
        best = [most_central(track) for track in tracks]
        centre = tuple(f"centre of {number}@{best[number]}" for number in range(n))
        asks = [
            Ask("way_of_camera", {}, (way,), at=tuple(part for k in range(n) for part in ends(k, tracks[k]))),
            Ask("count_objects", {}, (str(n),), at=centre),
        ]
        cells = [tuple(cell) for cell in programme["world"]]
        for number, thing in enumerate(things):
            for where in WHERE:
                found = beside(cells, number, where)
                if found is not None:
                    slots = {"where": where, **called(thing)}
                    looks = (f"{number}@{best[number]}",), (f"{found}@{best[found]}",)
                    asks.append(Ask("shape_beside", slots, (things[found][1],), *looks))
                    asks.append(Ask("colour_beside", slots, (things[found][0],), *looks))
        came = sorted((there(track)[0], number) for number, track in enumerate(tracks))
        if came[-1][0] > came[-2][0] + 1:  # a frame between them at least: nobody has to look twice
            seen = (f"{came[-1][1]}@{best[came[-1][1]]}",)
            asks.append(Ask("shape_nth", {"when": "last"}, (things[came[-1][1]][1],), at=seen))
            asks.append(Ask("colour_nth", {"when": "last"}, (things[came[-1][1]][0],), at=seen))
        return pick(asks, rng.randint(3, 4), rng)


def _seen(middle: Place, corner: Place) -> Place | None:
    """Where a thing of the world is in a frame; None where nothing of it is seen."""
    place = [middle[0] - corner[0], middle[1] - corner[1]]
    return place if all(-REACH < at < IMAGE_SIZE + REACH for at in place) else None


def most_central(track: Track) -> int:
    """The first frame in which a thing is as far from the edges as it gets."""
    away = {t: max(abs(track[t][0] - IMAGE_SIZE / 2), abs(track[t][1] - IMAGE_SIZE / 2)) for t in there(track)}
    return min(away, key=lambda t: (away[t], t))

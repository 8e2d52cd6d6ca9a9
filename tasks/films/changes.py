"""One change in a scene that stands still, or none."""

from __future__ import annotations

import random

from foveate.tasks.base import COLOURS, SHAPES
from foveate.tasks.films.film import called, some_things, there, whole, within
from foveate.tasks.films.script import Script
from foveate.tasks.generated import Programme
from foveate.tasks.questions import Ask, pick

KINDS = ("colour", "shape", "place", "gone", "new", "none")
WEIGHTS = (2, 2, 2, 1, 1, 2)  # gone and new are one answer, "number"


class Change(Script):
    """Two to four things; one takes another colour, shape or place, goes away or is new, or nothing happens.

    A thing that changes is two in the programme: what it is before, and what it is afterwards.
    """

    name = "change"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        (kind,) = rng.choices(KINDS, WEIGHTS)
        things = some_things(rng, rng.randint(2, 4))
        cells, at = rng.sample(range(9), len(things) + 1), rng.randint(2, frames - 2)
        tracks = [whole(cell, frames) for cell in cells[:-1]]
        before, after = range(at), range(at, frames)
        if kind != "none":
            tracks[0] = within(cells[0], frames, after if kind == "new" else before)
        if kind in ("colour", "shape", "place"):
            other = list(things[0])
            if kind != "place":
                names, slot = (COLOURS, 0) if kind == "colour" else (SHAPES, 1)
                other[slot] = rng.choice([name for name in names if all(name != thing[slot] for thing in things)])
            things.append(other)
            tracks.append(within(cells[-1] if kind == "place" else cells[0], frames, after))
        return {"things": things, "tracks": tracks, "kind": kind, "at": at}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        kind, things, (colour, shape, _) = programme["kind"], programme["things"], programme["things"][0]
        changed = [0, len(things) - 1] if kind in ("colour", "shape", "place") else [0]
        looks = tuple(f"{n}@{t}" for n in changed for t in self._turn(programme, n)) if kind != "none" else ()
        answer = {"gone": "number", "new": "number"}.get(kind, kind)
        asks = [Ask("what_changes", {}, (answer,), at=looks)]
        if kind == "colour":
            asks.append(Ask("shape_recoloured", {}, (shape,), at=looks))
        elif kind == "place":
            asks.append(Ask("shape_jumping", {}, (shape,), at=looks))
        elif kind in ("gone", "new"):
            verb = "gone" if kind == "gone" else "coming"
            asks.append(Ask(f"shape_{verb}", {}, (shape,), at=looks))
            asks.append(Ask(f"colour_{verb}", {}, (colour,), at=looks))
        return pick([*asks, *self._about_ends(programme)], rng.randint(3, 4), rng)

    def _turn(self, programme: Programme, number: int) -> list[int]:
        """The frame in which a thing is seen next to the change."""
        seen = there(programme["tracks"][number])
        return [seen[-1] if seen[0] == 0 else seen[0]]

    def _about_ends(self, programme: Programme) -> list[Ask]:
        """What something looks like at the start and at the end, for all that is there then."""
        asks = []
        for when, t in (("start", 0), ("end", programme["frames"] - 1)):
            for number, (thing, track) in enumerate(zip(programme["things"], programme["tracks"], strict=True)):
                if track[t] is not None:
                    slots, look = called(thing) | {"when": when}, (f"{number}@{t}",)
                    asks.append(Ask("colour_at", slots, (thing[0],), look, look))
                    asks.append(Ask("shape_at", slots, (thing[1],), look, look))
        return asks

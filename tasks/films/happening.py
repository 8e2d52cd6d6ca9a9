"""Things that come, flash, jump and go: in which order, how often, when, and in a long film only once."""

from __future__ import annotations

import random

from foveate.tasks.base import COLOURS
from foveate.tasks.films.film import CELLS, called, frame_of_part, part_of, some_things, spans, there, whole, within
from foveate.tasks.films.script import Script
from foveate.tasks.generated import Programme
from foveate.tasks.questions import Ask, pick

MOST_FLASHES = 4
MOST_JUMPS = 5
MOST_SHOWN = 7


class Order(Script):
    """Two to four things, one after the other and never two at once."""

    name = "order"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        things = some_things(rng, rng.randint(2, 4))
        cells, times = rng.sample(range(9), len(things)), spans(rng, len(things), frames, apart=0)
        tracks = [within(cell, frames, span) for cell, span in zip(cells, times, strict=True)]
        return {"things": things, "tracks": tracks}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        things, tracks = programme["things"], programme["tracks"]
        shows = [f"{number}@{there(track)[0]}" for number, track in enumerate(tracks)]
        asks = []
        for number, when in ((0, "first"), (len(things) - 1, "last")):
            asks.append(Ask("shape_nth", {"when": when}, (things[number][1],), at=(shows[number],)))
            asks.append(Ask("colour_nth", {"when": when}, (things[number][0],), at=(shows[number],)))
        for number, when, other in (
            *((k, "after", k + 1) for k in range(len(things) - 1)),
            *((k, "before", k - 1) for k in range(1, len(things))),
        ):
            slots, looks = {"when": when, **called(things[number])}, ((shows[number],), (shows[other],))
            asks.append(Ask("shape_next", slots, (things[other][1],), *looks))
            asks.append(Ask("colour_next", slots, (things[other][0],), *looks))
        asks = pick(asks, rng.randint(3, 4), rng)
        if rng.random() < 0.4:
            asks[rng.randrange(len(asks))] = self._yes_no(things, shows, rng)
        return asks

    def _yes_no(self, things: list, shows: list[str], rng: random.Random) -> Ask:
        """The answer is drawn first, then two things that give it."""
        true, (a, b) = rng.random() < 0.5, sorted(rng.sample(range(len(things)), 2))
        a, b = (a, b) if true else (b, a)
        slots = called(things[a]) | {"colour2": things[b][0], "shape2": things[b][1]}
        return Ask("is_before", slots, ("yes" if true else "no",), (shows[a], shows[b]), (shows[a], shows[b]))


class Times(Script):
    """One thing that flashes or jumps several times, or is there in some frames, beside others that stay or flash."""

    name = "times"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        things = some_things(rng, rng.randint(1, 3))
        first, *cells = rng.sample(range(9), len(things))
        kinds = rng.choices(("flash", "jump", "show"), (2, 2, 1))
        if kinds == ["flash"]:
            tracks = [self._flashing(rng, first, frames)]
        elif kinds == ["jump"]:
            tracks = [self._jumping(rng, first, cells, frames)]
        else:
            tracks = [within(first, frames, rng.sample(range(frames), rng.randint(1, MOST_SHOWN)))]
        for cell in cells:
            stays = kinds[0] == "jump" or rng.random() < 0.5
            kinds.append("stay" if stays else "flash")
            tracks.append(whole(cell, frames) if stays else self._flashing(rng, cell, frames))
        return {"things": things, "tracks": tracks, "kinds": kinds}

    def _flashing(self, rng: random.Random, cell: int, frames: int) -> list:
        n = rng.randint(1, min(MOST_FLASHES, (frames + 1) // 2))
        return within(cell, frames, [t for span in spans(rng, n, frames, apart=1) for t in span])

    def _jumping(self, rng: random.Random, cell: int, taken: list[int], frames: int) -> list:
        jumps = set(rng.sample(range(1, frames), rng.randint(1, min(MOST_JUMPS, frames - 1))))
        track = []
        for t in range(frames):
            if t in jumps:
                cell = rng.choice([free for free in range(9) if free != cell and free not in taken])
            track.append(list(CELLS[cell]))
        return track

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        asks = []
        for number, (thing, track, kind) in enumerate(
            zip(programme["things"], programme["tracks"], programme["kinds"], strict=True)
        ):
            seen = there(track)
            if kind == "flash":
                starts = [t for t in seen if t - 1 not in seen]
                asks.append(_count("count_flashes", thing, number, starts))
            elif kind == "show":
                asks.append(_count("count_frames", thing, number, seen))
            elif kind == "jump":
                jumps = [t for t in seen[1:] if track[t] != track[t - 1]]
                asks.append(_count("count_jumps", thing, number, jumps))
                if len(programme["things"]) > 1:
                    looks = tuple(f"{number}@{t}" for t in jumps)
                    asks.append(Ask("shape_jumping", {}, (thing[1],), at=looks))
        return pick(asks, rng.randint(2, 4), rng)


def _count(template: str, thing: list, number: int, times: list[int]) -> Ask:
    """How many of these frames there are."""
    return Ask(template, called(thing), (str(len(times)),), at=tuple(f"centre of {number}@{t}" for t in times))


class When(Script):
    """One to three things that come and stay, or go and stay away, each in a frame of its own, before others that
    stand still."""

    name = "when"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        n, comes = rng.randint(1, 3), rng.random() < 0.6
        things = some_things(rng, n + rng.randint(0, 2))
        cells = rng.sample(range(9), len(things))
        times = [frame_of_part(rng, frames, 1, frames - 1) for _ in range(n)]
        if len(set(times)) < n:
            return None
        spans_of = [range(t, frames) if comes else range(t) for t in times]
        tracks = [within(cell, frames, span) for cell, span in zip(cells, spans_of, strict=False)]
        return {"things": things, "tracks": [*tracks, *(whole(cell, frames) for cell in cells[n:])], "n": n}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        things, frames, asks = programme["things"], programme["frames"], []
        for number in range(programme["n"]):
            seen, slots = there(programme["tracks"][number]), called(things[number])
            comes = seen[0] > 0
            turn = seen[0] if comes else seen[-1]
            look = (f"{number}@{turn}",)
            asks.append(Ask("first_frame" if comes else "last_frame", slots, (str(turn + 1),), look, look))
            part = part_of(seen[0] if comes else seen[-1] + 1, frames)
            asks.append(Ask("part_of", {**slots, "verb": "come" if comes else "go"}, (part,), look, look))
            if comes and programme["n"] > 1:
                asks.append(Ask("shape_in_frame", {"number": str(turn + 1)}, (things[number][1],), at=look))
        return pick(asks, rng.randint(2, 4), rng)


class Idle(Script):
    """One to three things that stand still, and one short event: a thing comes and goes, or is away for a moment, or
    shows another colour."""

    name = "idle"

    def programme(self, rng: random.Random, frames: int) -> Programme | None:
        """See `Script.programme`."""
        kind = rng.choice(("come", "come", "go", "colour"))
        things = some_things(rng, rng.randint(2, 4))
        cells = rng.sample(range(9), len(things))
        long = rng.randint(1, max(1, frames // 8))
        at = frame_of_part(rng, frames, 1, frames - 1 - long)
        event = range(at, at + long)
        before = [t for t in range(frames) if t not in event]
        tracks = [within(cells[0], frames, event if kind == "come" else before)]
        tracks += [whole(cell, frames) for cell in cells[1:]]
        if kind == "colour":  # the same shape in another colour, in the same place
            free = [colour for colour in COLOURS if all(colour != thing[0] for thing in things)]
            things.append([rng.choice(free), *things[0][1:]])
            tracks.append(within(cells[0], frames, event))
        return {"things": things, "tracks": tracks, "kind": kind, "event": [at, at + long]}

    def asks(self, programme: Programme, rng: random.Random) -> list[Ask]:
        """See `Script.asks`."""
        kind, (start, stop), (colour, shape, _) = programme["kind"], programme["event"], programme["things"][0]
        part = (part_of(start, programme["frames"]),)
        if kind == "colour":
            seen = tuple(f"{len(programme['things']) - 1}@{t}" for t in range(start, stop))
            asks = [
                Ask("shape_recoloured", {}, (shape,), at=seen),
                Ask("part_recoloured", {"shape": shape}, part, seen[:1], seen[:1]),
            ]
            return pick(asks, 2, rng)
        looks = tuple(f"0@{t}" for t in (range(start, stop) if kind == "come" else (start - 1, stop)))
        templates = ("shape_coming", "colour_coming") if kind == "come" else ("shape_gone", "colour_gone")
        asks = [
            Ask(templates[0], {}, (shape,), at=looks),
            Ask(templates[1], {}, (colour,), at=looks),
            Ask("part_of", {"colour": colour, "shape": shape, "verb": kind}, part, looks[:1], looks[:1]),
        ]
        return pick(asks, rng.randint(2, 3), rng)

"""Videos: every answer follows from where things are in each frame, and the frames show just that."""

import numpy as np
import pytest

from foveate.tasks.base import IMAGE_SIZE, SPLITS
from foveate.tasks.films.film import SIZES, Film, part_of, spans
from foveate.tasks.films.happening import Idle
from foveate.tasks.films.moving import WAYS
from foveate.tasks.films.slides import FONT
from foveate.tasks.films.task import Films, video
from foveate.tasks.registry import TASKS, regime_sample
from foveate.tasks.render import PALETTE, Canvas, distance
from foveate.tasks.scenes import WHERE, beside
from foveate.tasks.splits import FONTS, stream

pytestmark = pytest.mark.fast
TASK, LONG = TASKS["video"], TASKS["long-video"]
TRACKED = [regime for regime in TASK.regimes if regime != "slides"]


def programmes(regime, n, split="host-train"):
    task = TASK if regime in TASK.regimes else LONG
    for k in range(n):
        programme, _ = task.find(split, k * len(task.regimes) + task.regimes.index(regime))
        yield programme, task.asks(programme, stream("asks", regime, k))


class State:
    """What a person sees who watches the frames: things that look alike are one."""

    def __init__(self, programme):
        self.frames = range(programme["frames"])
        self.camera = programme.get("camera")
        self.seen = [{} for _ in self.frames]
        for (colour, shape, _), track in zip(programme["things"], programme["tracks"], strict=True):
            for t, place in enumerate(track):
                if place is not None:
                    self.seen[t][colour, shape] = tuple(place)
        self.all = list(dict.fromkeys(key for frame in self.seen for key in frame))

    def times(self, thing):
        return [t for t in self.frames if thing in self.seen[t]]

    def way(self, thing):
        a, b = self.seen[0][thing], self.seen[-1][thing]
        return next(name for name, (dx, dy) in WAYS.items() if (b[0] - a[0]) * dx + (b[1] - a[1]) * dy > 0)

    def jumps(self, thing):
        return sum(self.seen[t].get(thing) != self.seen[t - 1].get(thing) for t in self.frames[1:])

    def turns(self):
        """(thing, frame) of each that appears, and of each that is gone, after the first frame."""
        came = [(k, t) for t in self.frames[1:] for k in self.seen[t] if k not in self.seen[t - 1]]
        went = [(k, t) for t in self.frames[1:] for k in self.seen[t - 1] if k not in self.seen[t]]
        return came, went

    def world(self, thing):
        t = self.times(thing)[0]
        return tuple((at + corner) // 32 for at, corner in zip(self.seen[t][thing], self.camera[t], strict=True))


def answer(state, template, slots):
    """The answer to a question, worked out from what is seen."""
    thing = (slots.get("colour"), slots.get("shape"))
    came, went = state.turns()
    moving = [
        k for k in state.all if len(state.times(k)) == len(state.frames) and state.seen[0][k] != state.seen[-1][k]
    ]
    which = 1 if template.startswith("shape") else 0
    if template == "way_of":
        return state.way(thing)
    if template == "way_of_object":
        (only,) = state.all
        return state.way(only)
    if template in ("shape_going", "colour_going"):
        (found,) = [k for k in state.all if state.way(k) == slots["way"]]
        return found[which]
    if template in ("shape_moving", "colour_moving"):
        (found,) = moving
        return found[which]
    if template == "way_of_camera":
        gone = [b - a for a, b in zip(state.camera[0], state.camera[-1], strict=True)]
        return next(name for name, (dx, dy) in WAYS.items() if gone[0] * dx + gone[1] * dy > 0)
    if template == "count_objects":
        return str(len(state.all))
    if template in ("shape_beside", "colour_beside"):
        assert slots["where"] in WHERE
        cells = [state.world(k) for k in state.all]
        return state.all[beside(cells, state.all.index(thing), slots["where"])][which]
    first = sorted(state.all, key=lambda k: state.times(k)[0])
    if template in ("shape_nth", "colour_nth"):
        return first[{"first": 0, "last": -1}[slots["when"]]][which]
    if template in ("shape_next", "colour_next"):
        return first[first.index(thing) + {"after": 1, "before": -1}[slots["when"]]][which]
    if template == "is_before":
        return "yes" if first.index(thing) < first.index((slots["colour2"], slots["shape2"])) else "no"
    if template == "count_flashes":
        return str(sum(t - 1 not in state.times(thing) for t in state.times(thing)))
    if template == "count_frames":
        return str(len(state.times(thing)))
    if template == "count_jumps":
        return str(state.jumps(thing))
    if template == "shape_jumping":
        (found,) = [k for k in state.all if len(state.times(k)) == len(state.frames) and state.jumps(k)]
        return found[1]
    if template in ("colour_at", "shape_at"):
        there = state.seen[{"start": 0, "end": -1}[slots["when"]]]
        (found,) = [k for k in there if k[1 - which] == thing[1 - which]]
        return found[which]
    if template == "first_frame":
        return str(state.times(thing)[0] + 1)
    if template == "last_frame":
        return str(state.times(thing)[-1] + 1)
    if template == "shape_in_frame":
        (found,) = [k for k, t in came if t + 1 == int(slots["number"])]
        return found[1]
    if template == "part_of":
        t = next(t for k, t in (came if slots["verb"] == "come" else went) if k == thing)
        return part_of(t, len(state.frames))
    if template == "part_recoloured":
        return part_of(next(t for k, t in came if k[1] == thing[1]), len(state.frames))
    if template in ("shape_recoloured", "shape_gone", "colour_gone", "shape_coming", "colour_coming"):
        return {"gone": went, "coming": came}.get(template.split("_")[1], came)[0][0][which]
    if template == "what_changes":
        if not came and not went:
            moved = [k for k in state.all if state.jumps(k)]
            return "place" if moved else "none"
        if came and went:
            return "colour" if came[0][0][1] == went[0][0][1] else "shape"
        return "number"
    raise AssertionError(template)


@pytest.mark.parametrize("regime", [*TRACKED, *LONG.regimes])
def test_answers_follow_from_what_is_seen_in_each_frame(regime):
    asked = 0
    for programme, asks in programmes(regime, 80):
        state = State(programme)
        for ask in asks:
            assert ask.answers == (answer(state, ask.template, ask.slots),), (ask, programme)
            asked += 1
    assert asked >= 100


def test_answers_of_slides_follow_from_the_pages():
    asked = set()
    for programme, asks in programmes("slides", 80):
        texts, plates = programme["texts"], programme["plates"]
        assert programme["starts"][0] == 0 and programme["starts"] == sorted(set(programme["starts"]))
        assert programme["starts"][-1] < programme["frames"]
        for ask in asks:
            asked.add(ask.template)
            if ask.template == "count_pages":
                expected = str(len(texts))
            elif ask.template == "written_on":
                expected = texts[{"first": 0, "last": -1}[ask.slots["which"]]]
            elif "page" in ask.slots:
                expected = texts[int(ask.slots["page"]) - 1]
            else:
                expected = texts[plates.index(ask.slots["colour"])]
            assert ask.answers == (expected,)
    assert asked == {"count_pages", "written_on", "number_on_page", "word_on_page", "number_on_plate", "word_on_plate"}


@pytest.mark.parametrize("regime", TRACKED)
def test_frames_show_the_things_where_they_are(regime):
    inside = range(15, IMAGE_SIZE - 14)
    for index in range(6):
        sample = regime_sample(regime, "host-train", index)
        programme, _ = TASK.find("host-train", sample.index)
        assert sample.clip.frames.shape == (8, 96, 96, 3) and sample.image is not None
        assert np.array_equal(sample.image, sample.clip.frames[4])
        for (colour, _, _), track in zip(programme["things"], programme["tracks"], strict=True):
            for t, place in enumerate(track):
                if place is not None and place[0] in inside and place[1] in inside:
                    x, y = place
                    patch = np.median(sample.clip.frames[t, y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3), axis=0)
                    assert distance(patch, PALETTE[colour]) < 60
                    near = min(PALETTE, key=lambda name: distance(patch, PALETTE[name]))
                    assert near == colour


def test_boxes_say_in_which_frame_they_are_and_carry_the_label():
    for regime in TASK.regimes:
        for index in range(4):
            sample = regime_sample(regime, "validation", index)
            for turn in sample.turns:
                for box in (*turn.at, *(b for group in turn.via for b in group)):
                    assert len(box) == 5 and 0 <= box[4] < len(sample.clip.frames)
            assert any(turn.at for turn in sample.turns)
    sample = regime_sample("slides", "validation", 1)
    for turn in sample.turns:
        if turn.template != "count_pages":
            assert len(turn.at) == len(turn.answers[0])


def test_the_middle_frame_says_nothing_about_the_way():
    places = {way: [] for way in WAYS}
    for programme, _ in programmes("motion", 300):
        for way, track in zip(programme["ways"], programme["tracks"], strict=True):
            places[way].append(track[4])
    for way, found in places.items():
        low, high, mean = np.min(found, axis=0), np.max(found, axis=0), np.mean(found, axis=0)
        assert len(found) > 80 and (abs(mean - IMAGE_SIZE / 2) < 2.5).all(), way
        assert (low >= 28).all() and (high <= IMAGE_SIZE - 28).all()


def test_order_shows_one_thing_at_a_time_and_motion_is_steady():
    for programme, _ in programmes("order", 50):
        assert all(sum(track[t] is not None for track in programme["tracks"]) <= 1 for t in range(8))
    for programme, _ in programmes("motion", 50):
        for track in programme["tracks"]:
            steps = np.abs(np.diff(np.array(track), axis=0)).sum(axis=1)
            assert 2 <= steps.min() and steps.max() <= 7


def test_a_still_camera_leaves_the_ground_alone_and_a_panning_one_takes_it_along():
    film = Film("test", stream("still"), 4)
    film.roll(("red",))
    assert all(np.array_equal(np.asarray(frame.image), np.asarray(film.first.image)) for frame in film.frames)
    film.roll(("red",), camera=[[0, 0], [5, 0], [0, 7], [192, 0]])
    ground, right, down, round_ = (np.asarray(frame.image) for frame in film.frames)
    assert np.array_equal(right[:, :-5], ground[:, 5:]) and np.array_equal(down[:-7], ground[7:])
    assert np.array_equal(round_, ground)  # mirrored twice, it comes again


def test_things_and_letters_are_large_enough_and_whole(monkeypatch):
    written, plain = [], Canvas.text

    def spy(canvas, x, baseline, text, face, size, colour):
        written.append((canvas.split, x, text, face, size))
        return plain(canvas, x, baseline, text, face, size, colour)

    monkeypatch.setattr(Canvas, "text", spy)
    for split in SPLITS:
        for index in range(10):
            regime_sample("slides", split, index)
    assert len(written) > 120
    for split, x, _, face, size in written:
        assert face in FONTS[split] and size >= FONT[0] == 24 and x >= 4
    assert SIZES[0][0] == 26
    for regime in ("motion", "mover", "order", "times", "change", "when", "idle"):
        for programme, _ in programmes(regime, 25):
            for t in range(8):
                seen = [track[t] for track in programme["tracks"] if track[t] is not None]
                assert all(16 <= at <= IMAGE_SIZE - 16 for place in seen for at in place)
                for k, a in enumerate(seen):
                    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 30 for b in seen[:k])


def test_long_films_are_idle_but_for_one_short_event():
    for regime, frames in (("idle16", 16), ("idle32", 32), ("idle64", 64)):
        for programme, _ in programmes(regime, 20):
            start, stop = programme["event"]
            assert programme["frames"] == frames and 1 <= stop - start <= frames // 8 and 0 < start < stop < frames
            shown = [[track[t] for track in programme["tracks"]] for t in range(frames)]
            assert all(shown[t] == shown[0] for t in range(frames) if not start <= t < stop)
            assert shown[start] != shown[0]
    assert regime_sample("idle32", "test", 0).clip.frames.shape == (32, 96, 96, 3)


def test_the_number_of_frames_is_a_parameter_with_a_name_of_its_own():
    task = video(16)
    sample = task.sample("test", 3)
    assert (task.name, sample.id, len(sample.clip.frames)) == ("video-16", "video-16/test/3", 16)
    assert video().name == "video" and video().regimes == TASK.regimes
    with pytest.raises(ValueError, match="still: regime short with 7 frames, at least 8"):
        Films("still", {"short": (Idle(), 7)})


def test_stretches_keep_their_distance_and_fill_the_film():
    rng = stream("spans")
    for _ in range(200):
        found = spans(rng, 3, 8, apart=1)
        assert len(found) == 3 and found[0].start >= 0 and found[-1].stop <= 8
        assert all(len(span) >= 1 for span in found)
        assert all(b.start - a.stop >= 1 for a, b in zip(found, found[1:], strict=False))

import dataclasses

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

PAIRS, LONG = [[1.0, 0], [1, 0], [0, 2], [0, 3]], [[1.0, 0], [1, 0], [2, 2]]


@pytest.fixture
def clip(tiny):
    """Tokens of a video (F, n) of features, or of random ones: clip(frames) or clip(t=, h=, w=)."""

    def build(frames=None, t=40, h=2, w=3, batch=1, seed=0, **options):
        if frames is not None:
            x = torch.tensor(frames).view(1, len(frames), -1)
            return tiny(n=len(frames), grid=(len(frames), 1, 1), x=x, **options)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, t * h * w, 8, generator=generator)
        return tiny(n=t * h * w, grid=(t, h, w), batch=batch, x=x, **options)

    return build


def streamed(method, tokens, count, window, told=True):
    """The memory behind windows of so many frames; the stream knows how long it will be, or not."""
    t, h, w = tokens.grid
    state = method.start((t if told else 0, h, w), count)
    for first in range(0, t, window):
        part = slice(first * h * w, min(t, first + window) * h * w)
        some = {name: getattr(tokens, name)[:, part] for name in ("x", "size", "position")}
        state = method.step(state, dataclasses.replace(tokens, **some, grid=(min(window, t - first), h, w)))
        assert method.finish(state).x.shape[1] <= count
    return method.finish(state)


def test_the_two_most_alike_neighbours_merge_until_two_are_left(clip):
    made = make("projector", "moviechat").resample(clip(PAIRS), 2)
    assert made.x.tolist() == [[[1, 0], [0, 2.5]]] and made.grid_out == (2, 1, 1)
    assert made.position.tolist() == [[0, 2]] and made.size.tolist() == [[2, 2]]


def test_direction_decides_and_with_raw_products_length_does(clip):
    assert make("projector", "moviechat").resample(clip(LONG), 2).x.tolist() == [[[1, 0], [2, 2]]]
    assert make("projector", "moviechat", raw=True).resample(clip(LONG), 2).x.tolist() == [[[1, 0], [1.5, 1]]]


def test_raw_products_are_the_mean_over_all_pairs_of_tokens(clip):
    method, x = make("projector", "moviechat", raw=True), clip(t=5).x.view(1, 5, 6, 8)
    wanted = torch.stack([(x[0, i] @ x[0, i + 1].T).mean() for i in range(4)])
    assert torch.allclose(method.likeness(x[:, :-1], x[:, 1:])[0], wanted, atol=1e-6)


def test_of_equal_pairs_the_first_merges(clip):
    made = make("projector", "moviechat").resample(clip([[1.0, 0]] * 2 + [[0, 1.0]] * 2), 3)
    assert made.position.tolist() == [[0, 2, 3]] and made.size.tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("options", [{}, {"merge": 2}, {"weighted": True}, {"raw": True}, {"moment": True}], ids=str)
def test_how_a_stream_is_cut_into_windows_changes_nothing(clip, options, told):
    tokens, method = clip(t=41), make("projector", "moviechat", **options)
    once = streamed(method, tokens, 7 * 6, 41, told)
    for window in (1, 5, 16, 20):
        made = streamed(method, tokens, 7 * 6, window, told)
        assert made.x.equal(once.x) and made.position.equal(once.position) and made.size.equal(once.size)
    if told:
        whole = method.resample(tokens, 7 * 6)
        assert whole.x.equal(once.x)


@pytest.mark.parametrize("frames", [1, 2, 3, 9, 17, 20, 40])
def test_a_video_that_is_there_whole_keeps_the_count_in_order_and_every_frame_is_in_one(clip, frames):
    tokens = clip(t=40)
    made = make("projector", "moviechat").resample(tokens, frames * 6)
    assert made.x.shape == (1, frames * 6, 8) and made.grid_out == (frames, 2, 3)
    assert (made.position.diff() > 0).all() and made.position[0, 0] == 0
    size = made.size.view(frames, 6)
    assert size[:, 0].sum() == 40 and (size == size[:, :1]).all()
    assert frames < 40 or made.x.equal(tokens.x)
    made = make("projector", "moviechat", weighted=True).resample(tokens, frames * 6)
    assert torch.allclose((made.x * made.size[..., None]).sum(1), tokens.x.sum(1), atol=1e-4)


def test_the_published_numbers_keep_two_of_sixteen_frames_and_a_memory_that_does_not_grow(clip):
    method = make("projector", "moviechat", merge=2, long=5)
    for windows, left in ((1, 2), (2, 4), (3, 5), (7, 5)):
        made = streamed(method, clip(t=16 * windows), 64 * 6, 16, told=False)
        assert made.grid_out == (left, 2, 3) and made.size.sum() == 6 * 16 * windows
    few = streamed(method, clip(t=1), 64 * 6, 16, told=False)
    assert few.grid_out == (1, 2, 3)  # fewer frames than a window becomes stay as they are


def test_a_frame_may_count_for_as_many_as_it_stands_for(clip):
    frames = [[1.0, 0], [1.0, 0], [1.0, 0.1], [0, 1.0]]
    plain = make("projector", "moviechat").resample(clip(frames), 2)
    assert plain.x[0, 0].tolist() == pytest.approx([1, 0.05])
    weighted = make("projector", "moviechat", weighted=True).resample(clip(frames), 2)
    assert weighted.x[0, 0].tolist() == pytest.approx([1, 0.1 / 3]) and weighted.size.tolist() == [[3, 1]]


def test_for_a_question_about_now_the_last_window_stays_as_it_came_and_its_oldest_frames_go_first(clip):
    tokens = clip(t=40)  # windows of 16, 16 and 8
    made = streamed(make("projector", "moviechat", moment=True, merge=2), tokens, 10 * 6, 16)
    assert made.x[:, 4 * 6 :].equal(tokens.x[:, 34 * 6 :]) and made.size[0, 4 * 6 :].eq(1).all()
    tight = streamed(make("projector", "moviechat", moment=True, merge=2), tokens, 3 * 6, 16)
    assert tight.x[:, 2 * 6 :].equal(tokens.x[:, 39 * 6 :]) and tight.grid_out == (3, 2, 3)


def test_what_it_holds_is_one_window_and_its_memory(clip):
    method, tokens = make("projector", "moviechat"), clip(t=16)
    state = method.start((0, 2, 3), 4 * 6)
    for number in range(12):
        state = method.step(state, dataclasses.replace(tokens, position=tokens.position + number * 16 * 6))
        assert len(state.short) == 16 and (state.long is None or len(state.long) <= 4)
    assert method.finish(state).size.sum() == 12 * 16 * 6


def test_bad_numbers_are_one_line(clip):
    with pytest.raises(ValueError, match="moviechat: window = 0, merge = 0 must be at least 1"):
        make("projector", "moviechat", window=0, merge=0)
    with pytest.raises(ValueError, match="moviechat: a window of 20 frames is above short = 18"):
        make("projector", "moviechat", window=20)
    method = make("projector", "moviechat")
    with pytest.raises(ValueError, match="moviechat: count 5 is below 6, 1 frames"):
        method.start((0, 2, 3), 5)
    with pytest.raises(ValueError, match=r"moviechat: count 7 of 240 tokens is not reachable on grid \(40, 2, 3\)"):
        method.resample(clip(t=40), 7)
    with pytest.raises(ValueError, match="moviechat: more frames have come than the 3 of the stream"):
        method.step(method.start((3, 2, 3), 6), clip(t=4))

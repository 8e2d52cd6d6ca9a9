import dataclasses
import math

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

CLIP = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 1]]])
"""Three frames of two tokens; likeness 1, .7071 and then 0, 1."""


def kept(tiny, x, grid, count, **options):
    anchor = make("projector", "dtd", **options).reduce(tiny(n=x.shape[1], grid=grid, x=x), count).anchor[0]
    return anchor[anchor >= 0].tolist()


@pytest.mark.parametrize(("tau", "wanted"), [(0.5, [0, 1, 4]), (0.9, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4, 5])])
def test_what_is_more_alike_than_tau_goes(tiny, tau, wanted):
    assert kept(tiny, CLIP, (3, 1, 2), 6, tau=tau) == wanted


def test_a_ceiling_drops_the_most_alike_first_over_all_frames_as_evs_does(tiny):
    assert kept(tiny, CLIP, (3, 1, 2), 3, tau=0.9) == [0, 1, 4]
    x = torch.randn(1, 48, 8, generator=torch.Generator().manual_seed(1))
    for count in (12, 17, 30):
        evs = make("projector", "evs").reduce(tiny(n=48, grid=(4, 3, 4), x=x), count).anchor[0].tolist()
        assert kept(tiny, x, (4, 3, 4), count, tau=1.0) == evs


def test_every_later_frame_loses_the_same_share(tiny):
    x = torch.randn(1, 48, 8, generator=torch.Generator().manual_seed(1))
    found = torch.tensor(kept(tiny, x, (4, 3, 4), 12 + 3 * 5))  # share 7/12 of each: rho = (1 + 3 * 5/12) / 4
    assert (found // 12).bincount().tolist() == [12, 5, 5, 5]
    uneven = torch.tensor(kept(tiny, x, (4, 3, 4), 12 + 3 * 5 + 2))
    assert (uneven // 12).bincount().tolist() == [12, 6, 6, 5]
    assert kept(tiny, CLIP, (3, 1, 2), 4) == [0, 1, 3, 4]  # the less alike of each frame


def drifting(steps):
    angle = torch.arange(steps) * math.acos(0.95)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).unsqueeze(0)


def test_slow_drift_is_not_seen_unless_it_is_measured_from_what_was_kept(tiny):
    assert kept(tiny, drifting(11), (11, 1, 1), 11, tau=0.9) == [0]
    found = kept(tiny, drifting(11), (11, 1, 1), 11, tau=0.9, drift=True)
    assert found == [0, 2, 4, 6, 8, 10]  # two steps of .95 are .805


def test_one_frame_is_untouched_and_a_static_clip_is_its_first_frame(tiny):
    assert list(make("projector", "dtd").reachable((1, 2, 3))) == [6]
    still = torch.randn(1, 1, 6, 4, generator=torch.Generator().manual_seed(0)).expand(1, 5, 6, 4).reshape(1, 30, 4)
    assert kept(tiny, still, (5, 2, 3), 30, tau=0.5) == list(range(6))


def test_a_scene_cut_is_kept_whole(tiny):
    x = torch.eye(2).repeat_interleave(4, dim=0).repeat_interleave(2, dim=0).unsqueeze(0)  # frames 0, 1 | 2, 3
    assert kept(tiny, x, (4, 2, 2), 16, tau=0.5) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_drift_without_a_threshold_is_refused():
    with pytest.raises(ValueError, match="dtd: drift = True needs tau"):
        make("projector", "dtd", drift=True)


def streamed(tiny, x, grid, count, window, told=True, **options):
    """Places that a stream keeps, window by window; it knows how long it will be, or not."""
    (t, h, w), method = grid, make("projector", "dtd", **options).streamed()
    state, tokens = method.start((t if told else 0, h, w), count), tiny(n=x.shape[1], grid=grid, x=x)
    for first in range(0, t, window):
        part = slice(first * h * w, min(t, first + window) * h * w)
        some = {name: getattr(tokens, name)[:, part] for name in ("x", "size", "position")}
        state = method.step(state, dataclasses.replace(tokens, **some, grid=(min(window, t - first), h, w)))
        assert state.x.shape[1] <= count and state.last.shape[1] == h * w
    made = method.finish(state)
    assert made.x.equal(x[:, made.position[0]]) and made.size.eq(1).all()
    return made.position[0].tolist()


@pytest.mark.parametrize(("tau", "wanted"), [(0.5, [0, 1, 4]), (0.9, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4, 5])])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_stream_drops_what_the_whole_clip_drops(tiny, tau, wanted, window):
    assert streamed(tiny, CLIP, (3, 1, 2), 6, window, told=False, tau=tau) == wanted


def test_a_stream_measures_drift_from_what_was_kept(tiny):
    assert streamed(tiny, drifting(11), (11, 1, 1), 11, 2, tau=0.9) == [0]
    assert streamed(tiny, drifting(11), (11, 1, 1), 11, 2, tau=0.9, drift=True) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("options", [{"tau": 0.5}, {"tau": 0.7}, {"tau": 0.6, "drift": True}, {}], ids=str)
@pytest.mark.parametrize("count", [12, 77, 300, 480])
def test_window_by_window_is_the_whole_clip_whatever_the_ceiling(tiny, options, count):
    generator = torch.Generator().manual_seed(2)
    still, noise = (torch.randn(1, t, 12, 8, generator=generator) for t in (1, 40))
    x = (still + 0.8 * noise).flatten(1, 2)
    whole = kept(tiny, x, (40, 3, 4), count, **options)
    for window in (1, 7, 16, 40):
        assert streamed(tiny, x, (40, 3, 4), count, window, **options) == whole


def test_bad_streams_are_one_line(tiny):
    method = make("projector", "dtd").streamed()
    with pytest.raises(ValueError, match="dtd: a stream of unknown length needs tau"):
        method.start((0, 1, 2), 6)
    with pytest.raises(ValueError, match="dtd: count 1 is below 2, one frame"):
        method.start((3, 1, 2), 1)
    with pytest.raises(ValueError, match="dtd: 2 streams at once"):
        method.step(method.start((3, 1, 2), 4), tiny(n=6, grid=(3, 1, 2), batch=2))
    with pytest.raises(ValueError, match="dtd: more frames have come than the 2 of the stream"):
        method.step(method.start((2, 1, 2), 4), tiny(n=6, grid=(3, 1, 2)))

"""What every method for streams promises: its memory is what has come, not how it came."""

import dataclasses

import pytest
import torch

import foveate.compressors  # noqa: F401  (fills the registry)
from foveate.compressors.base import Streamer
from foveate.compressors.registry import COMPRESSORS, make

pytestmark = [pytest.mark.fast, pytest.mark.matrix]

KEYS = sorted(key for key, cls in COMPRESSORS.items() if issubclass(cls, Streamer))
FIELDS = ("x", "size", "position")


def fed(method, state, tokens, window):
    """The state behind a video in windows of so many frames; on the way it holds 24 tokens at most."""
    t, h, w = tokens.grid
    for first in range(0, t, window):
        part, frames = slice(first * h * w, (first + window) * h * w), min(window, t - first)
        some = {name: getattr(tokens, name)[:, part] for name in FIELDS}
        state = method.step(state, dataclasses.replace(tokens, **some, grid=(frames, h, w)))
        once, again = method.finish(state), method.finish(state)
        assert once.x.equal(again.x) and once.x.shape[1] <= 24
    return state


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_how_a_stream_is_cut_into_windows_changes_nothing(key, told, tiny):
    tokens, method = tiny(n=126, grid=(21, 2, 3), batch=2), make(*key)
    start = method.start((21 if told else 0, 2, 3), 24)
    found = [method.finish(fed(method, start, tokens, window)) for window in (1, 4, 21)]
    for other in found[1:]:
        assert all(torch.equal(getattr(found[0], name), getattr(other, name)) for name in FIELDS)


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_a_stream_begins_anew_with_each_state(key, tiny):
    tokens, method = tiny(n=126, grid=(21, 2, 3)), make(*key)
    start = method.start((21, 2, 3), 24)
    first = method.finish(fed(method, start, tokens, 4))
    fed(method, start, tiny(n=126, grid=(21, 2, 3), seed=1), 4)
    assert method.finish(fed(method, start, tokens, 4)).x.equal(first.x)


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_a_method_for_streams_is_its_own_streamed_form(key):
    method = make(*key)
    assert method.streamed() is method


def test_other_methods_have_one_or_need_the_whole_video():
    assert make("projector", "dtd").streamed().name == "dtd"
    assert make("projector", "evs").streamed() is None and make("outside", "visionzip").streamed() is None

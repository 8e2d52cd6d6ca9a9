"""Time features: zero for what stands still, and saying what their names promise."""

import numpy as np
import pytest

from foveate.controller.features import pixel_features
from foveate.controller.motion import TIME_FEATURES, as_wide, shown_features, time_features
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast


def features(frames):
    return dict(zip(TIME_FEATURES, time_features(np.asarray(frames)).tolist(), strict=True))


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_a_video_that_stands_still_has_all_patches_still_and_no_cut():
    found = features(np.repeat(noise(0, 40, 60)[None], 4, axis=0))
    assert found.pop("log_frames") == pytest.approx(0.2)
    assert found == {"motion_mean": 0, "motion_spread": 0, "still_share": 1, "cuts": 0}


def test_a_single_frame_has_its_length_alone():
    assert time_features(noise(0, 1, 9, 9)).tolist() == [0.0] * 5


def test_steps_of_luminance_are_taken_at_their_size():
    grey = np.full((3, 16, 16, 3), 100, np.uint8)
    grey[1:] += 51  # a fifth of the range, once
    found = features(grey)
    assert found["motion_mean"] == pytest.approx(0.1, abs=1e-6) and found["still_share"] == 0.5
    assert found["motion_spread"] == pytest.approx(0.2, abs=1e-6)


def test_what_moves_in_one_corner_leaves_the_rest_still():
    frames = np.repeat(noise(1, 64, 64)[None], 2, axis=0)
    frames[1, :16, :16] = 255 - frames[1, :16, :16]
    assert features(frames)["still_share"] == pytest.approx(60 / 64)


def test_cuts_are_counted_and_a_thing_that_moves_is_none():
    scene = {name: np.full((32, 32, 3), colour, np.uint8) for name, colour in (("a", (200, 0, 0)), ("b", (0, 0, 200)))}
    assert features([scene[name] for name in "aabba"])["cuts"] == pytest.approx(np.log2(3) / 6)
    moving = np.stack([np.roll(noise(2, 32, 32), 5 * t, axis=1) for t in range(5)])
    assert features(moving)["cuts"] == 0 < features(moving)["motion_mean"]


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 7, 300), (5, 129, 8), (9, 40, 33)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_size_gives_finite_values_within_zero_and_one_and_they_repeat(shape, seed):
    frames = noise(seed, *shape)
    found = time_features(frames)
    assert found.dtype == np.float32 and np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    assert np.array_equal(found, time_features(np.asfortranarray(frames)))


@pytest.mark.parametrize("frames", [noise(0, 8, 8), np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8), "clip"])
def test_anything_but_frames_is_refused_by_name(frames):
    with pytest.raises(ValueError, match="^video: "):
        time_features(frames)


def test_what_is_shown_has_the_pixels_of_its_middle_frame_and_the_time_features_behind():
    frames, one, two = noise(3, 5, 24, 24), noise(4, 30, 20), noise(5, 16, 16)
    clip = Clip.of(frames)
    film = np.concatenate([pixel_features(frames[2]), time_features(frames)])
    assert np.array_equal(shown_features(clip), film) and np.array_equal(shown_features(frames), film)
    assert np.array_equal(shown_features([clip]), film) and np.array_equal(shown_features(one), pixel_features(one))
    both = (pixel_features(one) + pixel_features(two)) / 2
    assert np.allclose(shown_features((one, two)), both) and np.array_equal(shown_features([two]), pixel_features(two))
    mixed = shown_features([one, clip])
    assert np.allclose(mixed[:24], (pixel_features(one) + film[:24]) / 2) and np.array_equal(mixed[24:], film[24:])
    assert as_wide(shown_features(one), 29).tolist()[24:] == [0.0] * 5 and as_wide(mixed, 29) is mixed

"""STORM: what is pooled and skipped, and who hears of whom."""

import pytest
import torch
from torch.nn.functional import softplus

from foveate.compressors.learned import on_trial
from foveate.compressors.projector.storm import Mixer, Scan
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def ready(grid, features=1, **options):
    return on_trial(make("projector", "storm", **options), grid, features)


def moved(module, seed=0):
    """Weights far from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def test_at_first_frames_are_pooled_or_skipped(grid_of):
    film = grid_of([1, 2, 3, 4], 4, 1, 1)
    made = ready((4, 1, 1)).resample(film, 2)
    assert made.x.flatten().tolist() == [1.5, 3.5] and made.grid_out == (2, 1, 1)
    skipped = ready((4, 1, 1), frames=(1,), skips=(2,)).resample(film, 2)
    assert skipped.x.flatten().tolist() == [1, 3]


def test_at_first_places_are_pooled_too(grid_of):
    film = grid_of(range(4 * 2 * 2), 4, 2, 2)
    assert ready((4, 2, 2)).resample(film, 1).x.item() == 7.5
    assert ready((4, 2, 2)).resample(film, 2).x.flatten().tolist() == [3.5, 11.5]
    odd = ready((1, 3, 3)).resample(grid_of(range(9), 1, 3, 3), 4)  # the border with what there is
    assert odd.x.flatten().tolist() == [2, 3.5, 6.5, 8]


def test_the_last_frames_are_pooled_with_what_is_left(grid_of):
    made = ready((5, 1, 1)).resample(grid_of([1, 2, 3, 4, 9], 5, 1, 1), 3)
    assert made.x.flatten().tolist() == [1.5, 3.5, 9]
    assert ready((5, 1, 1)).resample(grid_of([1, 2, 3, 4, 9], 5, 1, 1), 2).x.flatten().tolist() == [2.5, 9]


def test_ratios_are_the_inverse_of_frames_times_places_times_skips():
    method, grid = make("projector", "storm"), (32, 16, 16)
    n = 32 * 256
    assert list(method.reachable(grid)) == [n // 32, n // 16, n // 8, n // 4, n // 2]
    wanted = {2: (2, 1, 1), 4: (4, 1, 1), 8: (4, 1, 2), 16: (4, 2, 1), 32: (4, 2, 2)}  # as published at 4, 8 and 32
    assert method.by_count(grid) == {n // share: setting for share, setting in wanted.items()}
    of_places = make("projector", "storm", frames=(1,), skips=(1,))
    assert of_places.by_count(grid) == {n // 4: (1, 2, 1)}  # 256 tokens of a frame become 64


def test_the_first_frame_hears_of_the_last_and_the_last_of_the_first(tiny):
    method = ready((4, 2, 2), 8, frames=(1,))
    tokens = tiny(n=16, grid=(4, 2, 2))
    assert torch.equal(method.network(tokens.x), tokens.x)
    moved(method.network)
    before = method.network(tokens.x)
    for changed, seen in ((slice(12, 16), slice(0, 4)), (slice(0, 4), slice(12, 16))):
        x = tokens.x.clone()
        x[:, changed] *= -1
        assert (method.network(x) - before)[:, seen].abs().amax() > 1e-3


def test_with_one_scan_for_both_ways_a_reversed_video_gives_reversed_tokens():
    mixer = moved(Mixer(8, 8))
    x = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(mixer(x.flip(1)), mixer(x).flip(1), atol=1e-3)
    mixer.back.load_state_dict(mixer.ahead.state_dict())
    assert torch.allclose(mixer(x.flip(1)), mixer(x).flip(1), atol=1e-5)


def test_a_fresh_scan_takes_steps_of_a_thousandth_to_a_tenth():
    torch.manual_seed(0)
    scan = Scan(64)
    step = softplus(scan.pace.bias)
    assert step.min() > 9e-4 and step.max() < 0.11 and scan.rank == 4
    assert scan.speed[5].exp().tolist() == pytest.approx(range(1, 17))
    x = torch.randn(1, 6, 64)
    later = x.clone()
    later[:, 4:] += 1
    assert torch.equal(scan(x)[:, :4], scan(later)[:, :4])  # it looks back alone


@pytest.mark.parametrize("options", [{"frames": ()}, {"sides": (0,)}, {"skips": (1, -1)}, {"depth": 0}])
def test_a_hyperparameter_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match=f"storm: {next(iter(options))}"):
        make("projector", "storm", **options)

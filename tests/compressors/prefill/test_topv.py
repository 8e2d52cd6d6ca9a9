import math

import pytest
import torch

from foveate.compressors.prefill.topv import geometry, split, spread
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def alike(tiny, grid):
    n = grid[0] * grid[1] * grid[2]
    return tiny(n=n, grid=grid, hidden_states=torch.ones(1, n, 4), post_norm=torch.ones(1, n, 4))


def test_with_equal_features_the_middle_matters_most(tiny):
    found = make("prefill", "topv").importance(alike(tiny, (1, 5, 5))).view(5, 5)
    assert found[2].tolist() == pytest.approx([0.0382, 0.0494, 0.0530, 0.0494, 0.0382], abs=1e-4)
    assert found[0, 0].item() == found[4, 4].item() == pytest.approx(0.0287, abs=1e-4)
    assert found.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_source_like_the_targets_is_kept(tiny):
    torch.manual_seed(0)
    source = torch.randn(1, 12, 8) * 3
    target = torch.zeros(1, 12, 8) + source[:, 7:8]
    tokens = tiny(n=12, hidden_states=source, post_norm=target)
    method = make("prefill", "topv", beta=0.0, gamma=0.0)
    assert method.importance(tokens)[0].argmax() == 7
    assert 7 in method.reduce(tokens, 5).anchor[0].tolist()
    balanced = make("prefill", "topv", transport="balanced").importance(tokens)
    assert float(balanced.std()) < 0.1 * float(method.importance(tokens).std())


@pytest.mark.parametrize(("n", "count", "best"), [(576, 288, 192), (12, 6, 4), (12, 3, 0), (12, 11, 10), (16, 1, 0)])
def test_ranked_and_recovered_are_the_count(n, count, best):
    assert split(n, count, 4) == (best, count - best)


def test_every_count_is_split_into_ranked_ones_and_every_fourth_of_the_rest():
    for n in (13, 40):
        for count in range(1, n):
            best, more = split(n, count, 4)
            assert best + more == count and (best == 0 or more == -(-(n - best) // 4))
            places = spread(n - best, more, 4 if best else 0)
            assert places == sorted(set(places)) and places[-1] < n - best


def test_recovered_ones_are_evenly_spaced_among_the_pruned(tiny):
    tokens = alike(tiny, (1, 3, 4))
    kept = make("prefill", "topv").reduce(tokens, 6).anchor[0].tolist()
    importance = make("prefill", "topv").importance(tokens)[0]
    best = importance.argsort(descending=True, stable=True)[:4].tolist()
    pruned = [i for i in range(12) if i not in best]
    assert kept == sorted([*best, pruned[0], pruned[4]])
    assert make("prefill", "topv").reduce(tokens, 3).anchor.tolist() == [[0, 4, 8]]  # by place alone
    assert spread(12, 5, 0) == [0, 2, 4, 7, 9]


def test_frames_are_far_apart_and_each_has_a_centre(tiny):
    apart, outside = geometry(tiny(n=8, grid=(2, 2, 2)), 10.0)
    assert apart[0, 0, 4].item() == 1 and apart[0, 0, 1].item() == pytest.approx(1 - math.exp(-1 / 200), abs=1e-6)
    assert outside[0].tolist() == pytest.approx([0.5**0.5] * 8)


@pytest.mark.parametrize(("depth", "layer"), [(32, 2), (8, 1), (4, 1), (3, 1)])
def test_reads_a_layer_that_has_run_and_cuts_behind_it(depth, layer):
    method = make("prefill", "topv")
    assert method.signals(depth) == {Signal("hidden_states", layer), Signal("post_norm", layer)}
    assert method.sites(16, 4, depth) == [(layer + 1, 4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": (31, 32)}, r"layer 31 is outside 1\.\.30"),
        ({"transport": "free"}, "transport 'free' is neither"),
        ({"epsilon": 0.0}, "sigma 10.0 or epsilon 0.0 is not above 0"),
        ({"stride": 1}, "stride 1 is below 2"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"topv: {message}"):
        make("prefill", "topv", **wrong)

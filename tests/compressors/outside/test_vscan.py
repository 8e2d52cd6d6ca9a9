import pytest
import torch

from foveate.compressors.base import apply
from foveate.compressors.choosing import selection
from foveate.compressors.outside.vscan import merged
from foveate.compressors.registry import make
from foveate.compressors.signals import FEATURE_LAYER, Signal

pytestmark = pytest.mark.fast


def picture(tiny, local, far, grid=(1, 24, 24), **more):
    n = grid[0] * grid[1] * grid[2]
    maps = {"cls_attention.local": local.view(1, 1, n), "cls_attention.global": far.view(1, 1, n)}
    return tiny(n=n, grid=grid, **maps, **more)


def test_dropped_tokens_are_averaged_into_the_kept_one_they_are_most_like():
    x = torch.tensor([[[1.0, 0], [0, 1], [2, 0], [1, 3]]])  # cosines of the last: .316 and .949
    kept = torch.tensor([[True, True, False, False]])
    reduction = merged(x, kept, selection(kept))
    assert torch.allclose(apply(reduction, x), torch.tensor([[[1.5, 0], [0.5, 2]]]))
    assert reduction.anchor.tolist() == [[0, 1]]


def test_nothing_dropped_leaves_the_features_alone(tiny):
    tokens = picture(tiny, torch.rand(576), torch.rand(576))
    reduction = make("outside", "vscan").reduce(tokens, 576)
    assert torch.equal(apply(reduction, tokens.x), tokens.x) and reduction.into is None


def test_96_of_576_are_three_of_each_window_and_48_of_the_whole(tiny):
    torch.manual_seed(0)
    tokens, method = picture(tiny, torch.rand(576), torch.rand(576)), make("projector", "vscan")
    near, far = (tokens.signals[f"cls_attention.{tag}"][:, 0] for tag in ("local", "global"))
    window, windows = method.windows(tokens)
    assert windows == 16 and window[0].bincount().tolist() == [36] * 16
    assert window[0, 5] == 0 and window[0, 6] == 1 and window[0, 24 * 6] == 4 and window[0, 575] == 15
    local = method.locals(tokens, near, 48)
    assert window[local].bincount().tolist() == [3] * 16
    for number in range(16):
        here = window[0] == number
        assert near[0, here & local[0]].min() > near[0, here & ~local[0]].max()
    kept = method.reduce(tokens, 96).anchor[0]
    chosen = torch.zeros(576, dtype=torch.bool)
    chosen[kept] = True
    assert bool(chosen[local[0]].all()) and kept.tolist() == sorted(kept.tolist()) and len(kept) == 96
    more = chosen & ~local[0]
    assert far[0, more].min() > far[0, ~chosen].max()


@pytest.mark.parametrize(("count", "published"), [(40, 36), (96, 96), (31, 16)])
def test_the_published_rule_gives_fewer_where_half_is_no_multiple_of_the_windows(tiny, count, published):
    torch.manual_seed(1)
    tokens = picture(tiny, torch.rand(576), torch.rand(576))
    assert make("outside", "vscan", fill=False).reduce(tokens, count).anchor.shape[1] == published
    assert make("outside", "vscan").reduce(tokens, count).anchor.shape[1] == count


def test_the_greedy_rule_goes_down_the_scores_while_a_window_has_room(tiny):
    near = torch.zeros(1, 8, 9)  # windows of four by four; the ninth column belongs to the last one
    near[0, 0, :4] = torch.tensor([0.9, 0.8, 0.7, 0.6])
    near[0, 7, 8], near[0, 3, 8], near[0, 0, 4] = 0.5, 0.4, 0.3
    tokens, method = picture(tiny, near, torch.zeros(72), grid=(1, 8, 9)), make("outside", "vscan", rule="greedy")
    window, windows = method.windows(tokens)
    assert windows == 4 and window[0].bincount().tolist() == [16, 20, 16, 20]
    local = method.locals(tokens, tokens.signals["cls_attention.local"][:, 0], 5)  # ceil(5 / 4) = 2 in a window
    assert local[0].nonzero()[:, 0].tolist() == [0, 1, 4, 35, 71]
    assert method.locals(tokens, tokens.signals["cls_attention.local"][:, 0], 2)[0].sum() == 2


def test_a_grid_smaller_than_its_windows_still_has_some(tiny):
    for rule in ("quota", "greedy"):
        tokens, method = (
            picture(tiny, torch.rand(6), torch.rand(6), grid=(1, 2, 3)),
            make("outside", "vscan", rule=rule),
        )
        window, windows = method.windows(tokens)
        assert int(window.max()) == windows - 1 and method.reduce(tokens, 3).anchor.shape == (1, 3)


def test_reads_an_early_and_the_last_block():
    assert make("outside", "vscan").signals(23) == {
        Signal("cls_attention", 5, "local"),
        Signal("cls_attention", FEATURE_LAYER, "global"),
    }
    qwen = make("outside", "vscan", local=(7, 32), rule="greedy").signals(32)
    assert Signal("cls_attention", 7, "local") in qwen


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"rule": "best"}, "rule 'best' is neither"), ({"local": (24, 24)}, r"local 24 is outside 0\.\.23")],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"vscan: {message}"):
        make("outside", "vscan", **wrong)

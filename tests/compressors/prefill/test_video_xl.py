"""Video-XL: where summary tokens stand, what they cost, and that they begin as tokens like others."""

import pytest
import torch

from foveate.compressors.learned import Widths, on_trial, untrained
from foveate.compressors.registry import make
from foveate.compressors.tokens import apply, apply_size
from foveate.models.windows import ran, spans

pytestmark = pytest.mark.fast

METHOD = make("prefill", "video_xl")
WIDTHS = Widths(24, 32, 0, 4, 3, (1, 4, 4), heads=4, kv_heads=2, head_dim=8)


def test_two_visual_tokens_then_a_summary_token():
    assert METHOD.stops(4, 2) == [1, 3]  # raw raw VST raw raw VST
    assert METHOD.stops(1440, 180) == list(range(7, 1440, 8))
    inside = [stop + i + 1 for i, stop in enumerate(METHOD.stops(48, 12))]
    assert all(i % 5 == 4 for i in inside) and len(inside) == 12


@pytest.mark.parametrize(("frames", "ratio", "count"), [(10, 8, 180), (2048, 16, 18432), (4, 2, 288), (4, 4, 144)])
def test_what_stays_of_frames_of_144_tokens(frames, ratio, count):
    grid = (frames, 12, 12)
    assert count in METHOD.reachable(grid) and len(METHOD.stops(144 * frames, count)) == count
    assert METHOD.reachable(grid) == [144 * frames // r for r in (16, 8, 4, 2)]


@pytest.mark.parametrize("ratio", [2, 4, 8, 16])
def test_windows_are_some_frames_and_the_last_one_ends_with_the_video(ratio):
    n = 1440
    windows = spans(METHOD.stops(n, n // ratio), METHOD.window(n, 10))
    assert [own[-1] + 1 for own in windows] == [576, 576, 288]
    assert [len(own) for own in windows] == [576 // ratio, 576 // ratio, 288 // ratio]
    assert all(own == list(range(ratio - 1, own[-1] + 1, ratio)) for own in windows)
    short = spans(METHOD.stops(144, 144 // ratio), METHOD.window(144, 1))
    assert len(short) == 1 and short[0][-1] == 143  # less than a window is one


def test_each_window_may_have_a_ratio_of_its_own():
    stops = [*range(7, 1440, 8), *range(1440 + 3, 2880, 4), *range(2880 + 1, 4320, 2)]
    assert [len(own) for own in spans(stops, 1440)] == [1440 // 8, 1440 // 4, 1440 // 2]
    assert ran(14, stops, 1440, 9) == [(14, 0), (1620, 14), (1800, 194), (2160, 554), (9, 1274)]
    assert sum(len(own) for own in spans(stops, 1440)) == 180 + 360 + 720


def test_where_windows_are_no_multiple_of_the_ratio_they_end_at_a_summary_token():
    assert spans(METHOD.stops(50, 12), 20) == [[3, 7, 11, 15, 19], [4, 8, 12, 16], [3, 7, 12]]
    assert spans(METHOD.stops(32, 2), 4) == [[15], [15]]  # a window without one goes on
    for n, count in ((35, 17), (35, 9), (11, 5), (9, 1)):
        own = METHOD.stops(n, count)
        assert own[-1] == n - 1 and len(set(own)) == count
        gaps = [b - a for a, b in zip([-1, *own], own, strict=False)]
        assert max(gaps) - min(gaps) <= 1
        windows = spans(own, 4)
        assert sum(window[-1] + 1 for window in windows) == n and sum(len(window) for window in windows) == count


def test_a_summary_token_stands_for_its_run_and_takes_nothing_of_its_features(tiny):
    tokens = tiny(n=12, batch=2)
    reduction = on_trial(METHOD).reduce(tokens, 3)
    assert reduction.anchor.tolist() == [[3, 7, 11]] * 2
    assert apply_size(reduction, tokens.size).tolist() == [[4.0] * 3] * 2
    assert (apply(reduction, tokens.x) == 0).all()


def test_at_first_all_that_is_added_is_zero_and_the_token_is_the_mean_of_its_run():
    method, x, end = untrained(METHOD, WIDTHS), torch.randn(2, 5, 32), torch.randn(32)
    assert all((method.added(x, layer, part) == 0).all() for layer in range(3) for part in "qkv")
    assert torch.equal(method.summaries(x, [1, 4], end), torch.stack([x[:, :2].mean(1), x[:, 2:].mean(1)], dim=1))
    assert [method.added(x, 1, part).shape[-1] for part in "qkv"] == [32, 16, 16]


def test_as_published_the_token_is_an_end_token_at_first():
    method = untrained(make("prefill", "video_xl", published=True), WIDTHS)
    x, end = torch.randn(2, 5, 32), torch.randn(32)
    assert torch.equal(method.summaries(x, [1, 4], end), end.expand(2, 2, -1))


def test_flops_of_what_is_added_are_those_of_its_matrix_products(matrix_flops):
    method, x = untrained(METHOD, WIDTHS), torch.randn(1, 6, 32)
    measured = matrix_flops(lambda: [method.added(x, layer, part) for layer in range(3) for part in "qkv"])
    assert method.summary_flops(6) == measured == 3 * 2 * 6 * 16 * (3 * 32 + 64)


def test_heads_may_be_wider_than_the_tokens():
    wide = Widths(24, 32, 0, 4, 3, (1, 4, 4), heads=4, kv_heads=2, head_dim=16)
    shapes = {part: tuple(value.shape) for part, value in untrained(METHOD, wide).network.up.items()}
    assert shapes == {"q": (3, 64, 16), "k": (3, 32, 16), "v": (3, 32, 16)}


def test_refuses_settings_out_of_range():
    for name in ("frames", "rank"):
        with pytest.raises(ValueError, match=f"video_xl: {name} 0 is below 1"):
            make("prefill", "video_xl", **{name: 0})

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.prefill.llavolta import pooled
from foveate.compressors.registry import make
from foveate.models.visual import Riders, carried

pytestmark = pytest.mark.fast


def line(values):
    return torch.tensor([values], dtype=torch.float32)[..., None]


def riders(place):
    n = len(place)
    index = torch.arange(n)[None]
    return Riders(torch.ones(1, n), index, index, torch.tensor([place]), index, torch.zeros(1).long(), (1, 1, n))


def test_runs_of_two_become_their_means_and_stand_at_the_truncated_mean_of_their_places(tiny):
    tokens = tiny(n=6, grid=(1, 1, 6), x=line([1, 3, 5, 7, 9, 11]))
    reduction = make("prefill", "llavolta").reduce(tokens, 3)
    assert apply(reduction, tokens.x)[0, :, 0].tolist() == [2, 6, 10]
    assert reduction.anchor.tolist() == [[0, 2, 4]]
    after = carried(riders([[i] for i in range(5, 11)]), reduction, "mean")
    assert after.place[0, :, 0].tolist() == [5, 7, 9]  # 5.5, 7.5, 9.5


def test_a_stride_of_one_changes_nothing(tiny):
    tokens = tiny(n=12)
    assert torch.equal(apply(make("prefill", "llavolta").reduce(tokens, 12), tokens.x), tokens.x)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("cells", ["runs", "squares"])
def test_the_mean_of_all_states_stays_where_the_stride_divides_them(tiny, cells, count):
    tokens = tiny(n=36, grid=(1, 6, 6))
    count = count if cells == "runs" else {1: 1, 2: 4, 3: 9, 4: 4, 6: 36}[count]
    kept = apply(make("prefill", "llavolta", cells=cells).reduce(tokens, count), tokens.x)
    assert torch.allclose(kept.mean(1), tokens.x.mean(1), atol=1e-6)


def test_a_last_run_that_is_not_full_stays(tiny):
    tokens = tiny(n=10, grid=(1, 2, 5), x=line(range(10)))
    reduction = make("prefill", "llavolta").reduce(tokens, 4)  # stride 3
    assert apply(reduction, tokens.x)[0, :, 0].tolist() == [1, 4, 7, 9]
    assert apply_size(reduction, tokens.size).tolist() == [[3, 3, 3, 1]]


@pytest.mark.parametrize(("n", "count"), [(12, 11), (12, 5), (7, 5), (20, 9), (576, 100), (10, 4), (9, 9)])
def test_any_count_equals_a_loop_over_runs(n, count):
    stride = -(-n // count)
    if -(-n // stride) == count:
        runs = [range(i * stride, min(n, (i + 1) * stride)) for i in range(count)]
    else:
        runs = [range(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
    wanted = torch.zeros(count, n)
    for i, run in enumerate(runs):
        wanted[i, run.start : run.stop] = 1 / len(run)
    first, into, weight = pooled(n, count)
    made = torch.zeros(count + 1, n)
    for j in range(2):
        made[into[:, j], torch.arange(n)] += weight[:, j]  # -1 writes zeros into the bin
    assert torch.equal(made[:count], wanted) and first.tolist() == [run.start for run in runs]


def test_runs_stay_within_their_frame(tiny):
    tokens = tiny(n=10, grid=(2, 1, 5), x=line([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
    method = make("prefill", "llavolta")
    assert apply(method.reduce(tokens, 4), tokens.x)[0, :, 0].tolist() == [0, 0, 1, 1]
    assert apply(method.reduce(tokens, 5), tokens.x)[0, :, 0].tolist() == [0, 0, 0.5, 1, 1]  # no equal share for both


def test_a_square_of_four_stands_at_its_top_left_token_on_all_axes(tiny):
    tokens = tiny(n=16, grid=(1, 4, 4), x=line(range(16)))
    reduction = make("prefill", "llavolta", cells="squares").reduce(tokens, 4)
    assert apply(reduction, tokens.x)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert reduction.anchor.tolist() == [[0, 2, 8, 10]]
    after = carried(riders([[7, 7 + y, 7 + x] for y in range(4) for x in range(4)]), reduction, "mean")
    assert after.place[0].tolist() == [[7, 7, 7], [7, 7, 9], [7, 9, 7], [7, 9, 9]]


def test_squares_equal_adaptive_pooling_and_refuse_what_is_no_grid(tiny):
    tokens, method = tiny(n=2 * 35, grid=(2, 5, 7)), make("prefill", "llavolta", cells="squares")
    maps = tokens.x.view(2, 5, 7, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.adaptive_avg_pool2d(maps, (4, 5)).flatten(2).transpose(1, 2).flatten(0, 1)
    assert 40 in method.reachable(tokens.grid)
    assert torch.allclose(apply(method.reduce(tokens, 40), tokens.x)[0], wanted, atol=1e-6)
    with pytest.raises(ValueError, match=r"llavolta: count 23 is not that of a smaller grid of \(2, 5, 7\)"):
        method.reduce(tokens, 23)
    with pytest.raises(ValueError, match="llavolta: 12 tokens are not a whole 1 x 5 x 7 grid"):
        method.reduce(tiny(n=12, grid=(1, 5, 7)), 4)


@pytest.mark.parametrize(("depth", "layer"), [(32, 2), (28, 2), (8, 1)])
def test_pools_at_the_papers_layer(depth, layer):
    assert make("prefill", "llavolta").sites(576, 72, depth) == [(layer, 72)]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"llavolta: layer 32 is outside 1\.\.31"):
        make("prefill", "llavolta", layer=(32, 32))
    with pytest.raises(ValueError, match="llavolta: cells 'rows' is neither 'runs' nor 'squares'"):
        make("prefill", "llavolta", cells="rows")

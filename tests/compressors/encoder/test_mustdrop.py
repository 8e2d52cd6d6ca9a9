import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def page(tiny, rows, columns, alike=(), dim=6, seed=0):
    """Random tokens of a grid, in which windows of 3 x 3 (numbered in raster order) are of one kind each."""
    x = torch.randn(1, rows * columns, dim, generator=torch.Generator().manual_seed(seed))
    for window in alike:
        top, left = divmod(window, columns // 3)
        for row in range(3):
            at = (top * 3 + row) * columns + left * 3
            x[:, at : at + 3] = x[:, top * 3 * columns + left * 3].unsqueeze(1)
    return tiny(n=rows * columns, grid=(1, rows, columns), x=x, dim=dim)


def test_identical_patches_of_24_by_24_become_64_tokens_that_stand_for_576(tiny):
    tokens = tiny(n=576, grid=(1, 24, 24), x=torch.ones(1, 576, 4), dim=4)
    for method, count in ((make("encoder", "mustdrop"), 64), (make("encoder", "mustdrop", threshold=0.8), 576)):
        reduction = method.reduce(tokens, count)
        size = apply_size(reduction, tokens.size)
        assert reduction.anchor.shape == (1, 64) and size.tolist() == [[9.0] * 64] and int(size.sum()) == 576


def test_a_threshold_that_nothing_reaches_leaves_everything_as_it_is(tiny):
    tokens = page(tiny, 6, 6, alike=[1])
    reduction = make("encoder", "mustdrop", threshold=1.01).reduce(tokens, 36)
    assert torch.equal(apply(reduction, tokens.x), tokens.x)


def test_the_most_alike_windows_come_first_then_the_rest_in_raster_order(tiny):
    tokens = page(tiny, 6, 6, alike=[2])
    reduction = make("encoder", "mustdrop").reduce(tokens, 28)  # 36 - 8: one window
    window = [18, 19, 20, 24, 25, 26, 30, 31, 32]
    assert reduction.anchor[0].tolist() == [25] + [i for i in range(36) if i not in window]
    assert torch.allclose(apply(reduction, tokens.x)[0, 0], tokens.x[0, window].mean(0), atol=1e-6)
    assert apply_size(reduction, tokens.size)[0].tolist() == [9.0] + [1.0] * 27


def test_members_count_by_their_size(tiny):
    tokens = page(tiny, 3, 3)
    tokens = dataclasses.replace(tokens, size=torch.tensor([[4.0, 1, 1, 1, 1, 1, 1, 1, 1]]))
    merged = apply(make("encoder", "mustdrop").reduce(tokens, 1), tokens.x)[0, 0]
    assert torch.allclose(merged, (tokens.size[0, :, None] * tokens.x[0]).sum(0) / 12, atol=1e-6)


def test_likeness_is_the_mean_cosine_of_the_pairs(tiny):
    tokens = page(tiny, 6, 6)
    method = make("encoder", "mustdrop")
    window, inside = method._windows((1, 6, 6), 36)
    alike = method._alike(tokens.x, window, window.bincount())
    unit = torch.nn.functional.normalize(tokens.x[0], dim=-1)
    for w in range(4):
        own = unit[window == w]
        wanted = ((own @ own.T).sum() - 9) / 72
        assert float(alike[0, w]) == pytest.approx(float(wanted), abs=2e-6)
        assert sorted(inside[window == w].tolist()) == list(range(9))


def test_every_count_can_be_given_the_last_window_merging_in_part(tiny):
    tokens = page(tiny, 6, 6, alike=[3])
    for count in range(1, 37):
        reduction = make("encoder", "mustdrop").reduce(tokens, count)
        size = apply_size(reduction, tokens.size)
        assert reduction.anchor.shape == (1, count) and float(size.sum()) == pytest.approx(36)
    assert apply_size(make("encoder", "mustdrop").reduce(tokens, 33), tokens.size)[0, 0] == 4  # 36 - 3


def test_rows_are_merged_each_by_its_own_likeness(tiny):
    both = tiny(n=36, grid=(1, 6, 6), batch=2, dim=6)
    x = torch.cat([page(tiny, 6, 6, alike=[0, 3]).x, page(tiny, 6, 6, alike=[1], seed=1).x])
    reduction = make("encoder", "mustdrop", threshold=0.99).reduce(dataclasses.replace(both, x=x), 36)
    assert reduction.count.tolist() == [20, 28] and (reduction.anchor[0, 20:] == -1).all()
    assert make("encoder", "mustdrop").sites(36, 20, 23) == [(0, 20)]


def test_a_side_below_two_is_named():
    with pytest.raises(ValueError, match="mustdrop: side 1 is below 2"):
        make("encoder", "mustdrop", side=1)

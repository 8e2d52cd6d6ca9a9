from dataclasses import replace

import pytest
import torch

from foveate.compressors.prefill.feather import on_grid, solved
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

EVEN = {0, 3, 18, 21}  # of a 6 x 6 grid, every third row and column


def picture(tiny, phi, grid=(1, 6, 6), site=0):
    tokens = tiny(n=phi.numel(), grid=grid, unrotated_query=phi.view(1, -1, grid[1] * grid[2]))
    return replace(tokens, site=site)


def test_the_even_grid_of_a_picture(tiny):
    assert set(on_grid(tiny(n=36, grid=(1, 6, 6)), 3)[0].nonzero()[:, 0].tolist()) == EVEN
    assert on_grid(tiny(n=12, grid=(1, 3, 4)), 9)[0].nonzero()[:, 0].tolist() == [0]
    assert on_grid(tiny(n=8, grid=(2, 2, 2)), 2)[0].nonzero()[:, 0].tolist() == [0, 4]


@pytest.mark.parametrize(("best", "size"), [(range(10), 12), (range(22, 32), 14), ([0, 3, 18, 21, *range(4, 10)], 10)])
def test_the_published_union_holds_ten_to_fourteen_of_36(tiny, best, size):
    phi = torch.zeros(36)
    phi[list(best)] = 1 - torch.arange(10) / 100
    method = make("prefill", "feather", share=0.3)
    assert method.sites(36, 1, 32) == [(8, 14), (16, 1)]
    kept = method.reduce(picture(tiny, phi), 14).anchor[0].tolist()
    assert kept == sorted({*best, *EVEN}) and len(kept) == size


def test_the_second_prune_protects_nobody_and_is_a_squared_of_what_came(tiny):
    phi = torch.arange(14.0) / 100
    tokens = picture(tiny, phi, grid=(1, 2, 7), site=1)
    assert make("prefill", "feather", share=0.3).reduce(tokens, 5).anchor.tolist() == [[13]]  # int(0.09 * 14) = 1
    assert make("prefill", "feather").reduce(tokens, 3).anchor.tolist() == [[11, 12, 13]]


@pytest.mark.parametrize(("n", "first"), [(576, 236), (729, 299)])
def test_the_published_share_never_keeps_more_than_both_sets(n, first):
    sites = make("prefill", "feather", share=0.3).sites(n, 10, 32)
    assert sites == [(8, first), (16, 10)]  # 172 + 64 and 218 + 81


def test_an_asked_count_fixes_the_share():
    share = solved(576, 64, 18)
    assert share**2 * (share * 576 + (1 - share) * 64) == pytest.approx(18)
    assert solved(576, 64, int(0.3**2 * (0.3 * 576 + 0.7 * 64))) == pytest.approx(0.3, abs=0.01)
    assert make("prefill", "feather").sites(576, 144, 32) == [(8, 379), (16, 144)]
    assert make("prefill", "feather").sites(3, 2, 32) == [(8, 2)]


def test_by_default_the_best_are_added_to_the_grid_up_to_the_count(tiny):
    phi = torch.zeros(36)
    phi[[7, 8, 35]] = torch.tensor([0.1, 0.3, 0.2])
    tokens = picture(tiny, phi)
    assert make("prefill", "feather").reduce(tokens, 6).anchor.tolist() == [[0, 3, 8, 18, 21, 35]]
    assert make("prefill", "feather").reduce(tokens, 2).anchor.tolist() == [[0, 3]]  # no room for the grid


def test_heads_count_alike_whatever_they_pay_to_words(tiny):
    heads = torch.tensor([[[0.01, 0.03, 0.0], [0.5, 0.1, 0.3]]])  # of the pictures: .25 .75 0 and .556 .111 .333
    tokens = replace(tiny(n=3, grid=(1, 1, 3), unrotated_query=heads), site=1)
    assert make("prefill", "feather").reduce(tokens, 1).anchor.tolist() == [[1]]


@pytest.mark.parametrize("depth", [4, 8, 32])
def test_each_prune_reads_the_layer_before(depth):
    method = make("prefill", "feather")
    for layer, _ in method.sites(576, 144, depth):
        assert method.signals_at(layer, depth) == {Signal("unrotated_query", layer - 1)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": ((16, 8), 32)}, r"layers 16, 8 do not ascend within 1\.\.31"),
        ({"stride": 0}, "stride 0 is below 1"),
        ({"share": 1.0}, r"share 1.0 is outside \(0, 1\)"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"feather: {message}"):
        make("prefill", "feather", **wrong)

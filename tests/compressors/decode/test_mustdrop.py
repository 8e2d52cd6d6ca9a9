import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def survivors(*alive):
    return torch.tensor([alive], dtype=torch.float32)


def test_the_entries_that_the_last_layer_has_stay(tiny_cache):
    cache = tiny_cache(visual=6, text=(1, 1), heads=2, survivors=survivors(1, 0, 1, 0, 0, 1, 1, 1))
    assert make("decode", "mustdrop").reduce(cache, 3).keep.tolist() == [[[0, 2, 5, 6, 7]] * 2]


def test_fewer_survivors_than_the_ceiling_are_all_that_stays(tiny_cache):
    cache = tiny_cache(visual=6, text=(1, 1), heads=1, survivors=survivors(1, 0, 1, 0, 0, 0, 1, 1))
    reduction = make("decode", "mustdrop").reduce(cache, 5)
    assert reduction.keep.tolist() == [[[0, 2, 6, 7]]] and reduction.count.tolist() == [[4]]


def test_a_ceiling_below_the_survivors_spaces_them_evenly(tiny_cache):
    cache = tiny_cache(visual=8, text=(0, 1), heads=1, survivors=survivors(*[1] * 9))
    assert make("decode", "mustdrop").reduce(cache, 4).keep.tolist() == [[[1, 3, 5, 7, 8]]]
    assert make("decode", "mustdrop").reduce(cache, 1).keep.tolist() == [[[7, 8]]]


def test_layers_before_the_first_cut_are_left_alone_and_the_count_is_a_ceiling_in_the_others():
    budgets = [make("decode", "mustdrop").budgets(100, 90, layer, 32, 2, last=20) for layer in range(32)]
    assert budgets[:2] == [(100, 100)] * 2  # layers 0 and 1
    assert budgets[2:] == [(20, 20)] * 30
    assert make("decode", "mustdrop").budgets(100, 10, 2, 32, 2, last=20) == (10, 10)

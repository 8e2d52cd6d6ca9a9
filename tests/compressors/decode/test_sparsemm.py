import dataclasses

import pytest
import torch
from torch.nn.functional import avg_pool1d

from foveate.compressors.decode.sparsemm import HeadScores
from foveate.compressors.learned import MissingWeights, Widths
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def scored(scores, **arguments):
    """SparseMM with these scores (L, h)."""
    table = HeadScores(*torch.tensor(scores).shape)
    table.load_state_dict({"scores": torch.tensor(scores, dtype=torch.float32)})
    return dataclasses.replace(make("decode", "sparsemm", **arguments), network=table)


def test_budgets_of_the_worked_example():
    # B = 64 with a window of 32: b = 32, u = 3, 116 of 128 entries are shared out by score
    capacities = scored([[0.5, 0.3], [0.15, 0.05]]).capacities(32, heads=2)
    assert capacities.tolist() == [[61, 38], [20, 9]] and int(capacities.sum()) == 4 * 32


def test_equal_scores_give_every_head_the_mean():
    for count in (1, 7, 32):
        assert scored([[1.0] * 4] * 3).capacities(count, heads=2).tolist() == [[count] * 2] * 3


def test_capacities_add_up_to_the_budget_whatever_the_scores():
    for seed in range(20):
        scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed)).tolist()
        for count in (1, 5, 13, 100):
            assert int(scored(scores).capacities(count, heads=3).sum()) == count * 4 * 3


def test_query_heads_of_one_group_are_summed():
    by_group = scored([[0.4, 0.1, 0.2, 0.1], [0.1, 0.05, 0.03, 0.02]], ratio=0.0).capacities(10, heads=2)
    assert by_group.tolist() == [[20, 12], [6, 2]]


def test_a_head_cannot_keep_more_than_there_is_and_the_excess_is_not_handed_on():
    method = scored([[0.5, 0.3], [0.15, 0.05]])
    assert method.budgets(n=40, count=32, layer=0, depth=2, heads=2, last=40) == (40, 38)
    assert method.budgets(n=40, count=32, layer=1, depth=2, heads=2, last=40) == (20, 9)


def test_each_head_keeps_the_text_the_last_32_and_its_best_pooled_entries(tiny_cache):
    cache = tiny_cache(visual=60, text=(4, 40), heads=2)
    reduction = scored([[0.75, 0.25]], ratio=0.0).reduce(cache, 16)
    assert reduction.count.tolist() == [[44 + 24, 44 + 8]]
    pooled = avg_pool1d(cache.signals["recent_attention"][0, :, :72], 5, 1, 2)  # the last 32 of 104 are not pooled in
    for head, room in ((0, 24), (1, 8)):
        keep = reduction.keep[0, head, : 44 + room].tolist()
        assert set(keep) >= {*range(4), *range(64, 104)}
        best = pooled[head, 4:64].topk(room).indices + 4
        assert set(keep) - {*range(4), *range(64, 104)} == set(best.tolist())
        assert (reduction.keep[0, head, 44 + room :] == -1).all()


def test_visual_entries_among_the_last_32_come_first_within_a_heads_budget(tiny_cache):
    attention = torch.zeros(1, 1, 60)
    attention[0, 0, 10] = 9.0
    cache = tiny_cache(visual=50, text=(4, 6), heads=1, recent_attention=attention)
    keep = scored([[1.0]]).reduce(cache, 30).keep[0, 0].tolist()  # the window holds entries 28 .. 59, 26 of them visual
    assert set(range(28, 60)) <= set(keep) and {8, 9, 10, 11} <= set(keep) and len(keep) == 10 + 30


def test_a_prompt_shorter_than_the_window_keeps_what_is_attended_to(tiny_cache):
    attention = torch.tensor([0, 0, 9, 0, 0, 0, 0, 0.0]).view(1, 1, 8)
    cache = tiny_cache(visual=6, text=(1, 1), heads=1, recent_attention=attention)
    assert scored([[1.0]], kernel=1).reduce(cache, 1).keep.tolist() == [[[0, 2, 7]]]


def test_without_scores_it_names_the_command_that_measures_them(tiny_cache):
    with pytest.raises(MissingWeights, match="sparsemm: .*`foveate calibrate-heads --model MODEL`"):
        make("decode", "sparsemm").reduce(tiny_cache(), 5)


def test_scores_have_the_shape_of_the_decoder():
    widths = Widths(8, 8, 0, 3, 5, (1, 2, 2), heads=6, kv_heads=2)
    assert make("decode", "sparsemm").build(widths).scores.shape == (5, 6)
    with pytest.raises(ValueError, match="sparsemm: scores of 6 query heads for 4 KV heads"):
        scored([[1.0] * 6]).capacities(3, heads=4)


@pytest.mark.parametrize(("wrong", "message"), [({"ratio": 1.5}, r"ratio 1.5"), ({"kernel": 4}, "kernel 4 is not odd")])
def test_wrong_hyperparameters_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"sparsemm: {message}"):
        make("decode", "sparsemm", **wrong)

import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, in_order
from foveate.compressors.encoder.ficoco import recycled, spread
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

PAID = torch.tensor([[[0.0, 0.6, 0.2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0.1, 0.5, 0]]])  # 0 and 3 pay 1 and 2


@pytest.fixture
def example(tiny):
    """Four tokens of which CLS attends to 1 and 2 alone."""
    return tiny(
        n=4,
        grid=(1, 1, 4),
        x=torch.tensor([[[4.0], [10], [20], [8]]]),
        attention_map=PAID,
        cls_attention=torch.tensor([[[0, 0.5, 0.5, 0]]]),
    )


BOTH = [(10 + 3 + 8 / 6) / (1 + 0.75 + 1 / 6), (20 + 1 + 40 / 6) / (1 + 0.25 + 5 / 6)]  # weights 3/4 1/4, 1/6 5/6


@pytest.mark.parametrize(("quantile", "wanted"), [(0.0, BOTH), (0.998, [7, 14])])
def test_each_lost_token_goes_to_those_that_it_attends_to(example, quantile, wanted):
    reduction = make("encoder", "ficoco", share=0.0, quantile=quantile).reduce(example, 2)
    assert reduction.anchor.tolist() == [[1, 2]] and pytest.approx([7.478, 13.28], abs=1e-3) == BOTH
    assert apply(reduction, example.x).flatten().tolist() == pytest.approx(wanted)


def test_redundancy_weighs_attention_of_patches_against_that_of_cls(tiny):
    attention = torch.tensor([[[0.4, 0.3, 0.3], [0.0, 0.5, 0.4], [0.1, 0.1, 0.8]]])
    cls = torch.tensor([[[0.3, 0.0, 0.4], [0.3, 0.0, 0.4]]])  # norm 0.5: .6, 0, .8
    tokens = tiny(n=3, grid=(1, 1, 3), attention_map=attention, cls_attention=cls)
    received = torch.tensor([0.1, 0.4, 0.7]) / (0.01 + 0.16 + 0.49) ** 0.5
    paid = torch.tensor([0.6, 0.4, 0.2]) / (0.36 + 0.16 + 0.04) ** 0.5
    by_cls = torch.tensor([0.6, 0, 0.8])
    for seen, patches in (("received", received), ("paid", paid)):
        found = make("encoder", "ficoco", seen=seen).redundancy(tokens)[0]
        assert torch.allclose(found, 0.65 * patches - 0.35 * by_cls, atol=1e-6)


def test_the_most_redundant_token_of_each_window_counts_more():
    redundancy = torch.tensor([[0.2, 0.4, -0.4, 0.5, 0.1, 0.4, -0.2, -0.3, 0.3, 0.3]])  # of a 2 x 5 grid
    # windows {0, 1, 5, 6} and {2, 3, 7, 8}; the last column fills none
    wanted = [0.2, 0.8, -0.4, 1.0, 0.1, 0.4, -0.2, -0.3, 0.3, 0.3]
    assert torch.allclose(spread(redundancy, torch.arange(10).unsqueeze(0), (1, 2, 5), 2), torch.tensor([wanted]))
    thinned = torch.tensor([[2, 7, 9, -1]])
    found = spread(torch.tensor([[-0.4, -0.3, 0.3, 0.9]]), thinned, (1, 2, 5), 2)
    assert torch.allclose(found, torch.tensor([[-0.4, -0.15, 0.3, 0.9]]))


def test_windows_do_not_reach_into_the_next_frame():
    redundancy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1]])
    found = spread(redundancy, torch.arange(8).unsqueeze(0), (2, 2, 2), 2)
    assert torch.allclose(found, torch.tensor([[0.1, 0.2, 0.3, 0.8, 0.8, 0.3, 0.2, 0.1]]))


def test_windows_spread_what_goes(tiny):
    received = torch.tensor([0.3, 0.29, 0.28, 0.1, 0.09, 0.08, 0.07, 0.06])
    attention = received.expand(8, 8).unsqueeze(0)
    tokens = tiny(n=8, grid=(1, 2, 4), attention_map=attention, cls_attention=torch.zeros(1, 1, 8))
    # windows {0, 1, 4, 5} and {2, 3, 6, 7}
    assert make("encoder", "ficoco", window=1).reduce(tokens, 6).anchor.tolist() == [[2, 3, 4, 5, 6, 7]]
    assert make("encoder", "ficoco").reduce(tokens, 6).anchor.tolist() == [[1, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("survivors", "best"), [(500, 1), (501, 2), (576, 2), (1000, 2), (1001, 3), (1, 1)])
def test_published_quantile_is_the_best_or_the_best_two(tiny, survivors, best):
    n = survivors + 1
    attention = torch.rand(1, n, n, generator=torch.Generator().manual_seed(0))
    tokens = tiny(n=n, grid=(1, 1, n), dim=1, attention_map=attention)
    reduction = make("encoder", "ficoco").reduce(tokens, survivors)
    kept = torch.zeros(1, n).scatter_(1, reduction.anchor, 1).bool()
    assert (reduction.into[~kept] >= 0).sum(-1).tolist() == [best]
    lost = int((~kept).nonzero()[0, 1])
    strongest = attention[0, lost].masked_fill(~kept[0], -1).topk(best).indices
    assert set(reduction.anchor[0, reduction.into[~kept][0, :best]].tolist()) == set(strongest.tolist())


def test_equal_tokens_stay_equal_and_nothing_leaves_the_range_of_the_old_values(tiny):
    same = torch.full((2, 30, 3), 1.5)
    for x in (same, tiny(n=30, batch=2, dim=3).x):
        tokens = tiny(n=30, grid=(1, 5, 6), batch=2, x=x)
        made = apply(make("encoder", "ficoco", quantile=0.9).reduce(tokens, 11), x)
        low, high = x.amin(1, keepdim=True) - 1e-5, x.amax(1, keepdim=True) + 1e-5
        assert ((made >= low) & (made <= high)).all()


def test_survivors_keep_their_order_and_all_may_stay(example):
    reduction = make("encoder", "ficoco").reduce(example, 4)
    assert reduction.anchor.tolist() == [[0, 1, 2, 3]]
    assert torch.equal(apply(in_order(reduction), example.x), example.x)


def test_a_token_that_attends_to_no_survivor_is_shared_equally():
    reduction = recycled(torch.tensor([[0, 1]]), torch.tensor([[2]]), torch.tensor([[[0, 1]]]), torch.zeros(1, 1, 2))
    assert apply(reduction, torch.tensor([[[0.0], [3.0], [6.0]]])).flatten().tolist() == pytest.approx([2, 4])


@pytest.mark.parametrize(
    ("count", "removed"),
    [(114, [42] * 11), (288, [27] * 2 + [26] * 9), (192, [35] * 10 + [34]), (64, [47] * 6 + [46] * 5)],
)
def test_removals_are_spread_over_the_second_half_of_the_tower(count, removed):
    sites = make("encoder", "ficoco").sites(576, count, 23)
    counts = [576] + [left for _, left in sites]
    assert [layer for layer, _ in sites] == list(range(12, 23))
    assert [before - after for before, after in zip(counts, counts[1:], strict=False)] == removed


def test_reads_map_and_cls_of_every_block_that_may_compress():
    method = make("encoder", "ficoco")
    assert method.signals(6) == {Signal(kind, b) for b in (3, 4, 5) for kind in ("attention_map", "cls_attention")}
    assert method.signals_at(4, 6) == {Signal("attention_map", 4), Signal("cls_attention", 4)}


def test_rows_go_their_own_ways(tiny):
    tokens = tiny(n=12, batch=2)
    reduction = make("encoder", "ficoco").reduce(tokens, 5)
    swapped = {kind: value.flip(0) for kind, value in tokens.signals.items()}
    again = make("encoder", "ficoco").reduce(dataclasses.replace(tokens, signals=swapped), 5)
    assert torch.equal(again.into, reduction.into.flip(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seen": "both"}, "seen 'both'"), ({"share": 2.0}, "share 2.0"), ({"window": 0}, "window 0 is below 1")],
)
def test_wrong_hyperparameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"ficoco: {message}"):
        make("encoder", "ficoco", **arguments)

import dataclasses
import itertools

import pytest
import torch

from foveate.compressors.base import (
    Compressor,
    KVReduction,
    Reduction,
    Selector,
    apply,
    apply_kv,
    apply_position,
    apply_size,
    in_order,
    scaled,
    then,
)
from foveate.compressors.signals import Signal
from foveate.compressors.tokens import SCATTERED, apply_flops

pytestmark = pytest.mark.fast


def test_a_published_layer_is_scaled_rounded_half_up_and_clamped():
    assert [scaled((2, 32), depth) for depth in (32, 24, 8, 4, 40)] == [2, 2, 1, 1, 3]
    assert scaled((16, 32), 28) == 14 and scaled((31, 32), 8) == 7


def test_selection_gathers_bit_for_bit_and_keeps_the_type():
    x = torch.randn(2, 4, 3).half()
    kept = apply(Reduction(torch.tensor([[2, 0], [3, 1]])), x)
    assert torch.equal(kept[0], x[0, [2, 0]]) and torch.equal(kept[1], x[1, [3, 1]]) and kept.dtype == torch.half


def test_sums_are_taken_in_float32():
    x = torch.tensor([[[2048.0], [1.0], [1.0]]]).half()  # 2048 + 1 is 2048 in float16
    merged = Reduction(torch.tensor([[0]]), torch.zeros(1, 3, 1, dtype=torch.int64), torch.ones(1, 3, 1))
    assert apply(merged, x).item() == 2050


def test_tokens_that_go_to_many_slots_are_summed_alike():
    generator = torch.Generator().manual_seed(0)
    x, size = torch.randn(2, 9, 3, generator=generator), torch.rand(2, 9, generator=generator)
    into = torch.randint(-1, 7, (2, 9, 6), generator=generator)
    weight = torch.randn(2, 9, 6, generator=generator)
    wanted, sizes = torch.zeros(2, 7, 3), torch.zeros(2, 7)
    for b, n, j in itertools.product(range(2), range(9), range(6)):
        if into[b, n, j] >= 0:
            wanted[b, into[b, n, j]] += weight[b, n, j] * x[b, n]
            sizes[b, into[b, n, j]] += size[b, n] / (into[b, n] >= 0).sum()
    many = Reduction(torch.arange(7).expand(2, 7), into, weight)
    assert into.shape[-1] > SCATTERED
    assert torch.allclose(apply(many, x), wanted, atol=1e-5) and torch.allclose(apply_size(many, size), sizes)
    parts = [dataclasses.replace(many, into=into[..., j:k], weight=weight[..., j:k]) for j, k in ((0, 4), (4, 6))]
    assert torch.allclose(sum(apply(part, x) for part in parts), wanted, atol=1e-5)
    assert apply(many, x.half()).dtype == torch.half


@pytest.mark.parametrize(("slots", "flops"), [(4, 0), (5, 2 * 9 * 7 * 3)])
def test_a_sum_costs_what_its_matrix_product_does(slots, flops, matrix_flops):
    into = torch.zeros(1, 9, slots, dtype=torch.int64)
    many = Reduction(torch.arange(7).unsqueeze(0), into, torch.ones(into.shape))
    assert matrix_flops(lambda: apply(many, torch.randn(1, 9, 3))) == apply_flops(9, 7, slots, 3) == flops


def test_unused_slots_are_zero_stand_for_nothing_and_have_no_place():
    reduction = Reduction(torch.tensor([[1, 2], [0, -1]]), count=torch.tensor([2, 1]))
    x = torch.arange(1.0, 7.0).view(2, 3, 1)
    assert apply(reduction, x).squeeze(-1).tolist() == [[2, 3], [4, 0]]
    assert apply_size(reduction, torch.ones(2, 3)).tolist() == [[1, 1], [1, 0]]
    assert apply_position(reduction, torch.tensor([[7, 8, 9], [4, 5, 6]])).tolist() == [[8, 9], [4, -1]]


def test_leaving_order_is_by_anchor_then_summaries_then_unused_slots():
    into = torch.tensor([[[2], [0], [3], [0]]])
    reduction = Reduction(torch.tensor([[3, -1, 0, 2, -1]]), into, torch.ones(1, 4, 1), torch.tensor([4]))
    ordered = in_order(reduction)
    assert ordered.anchor.tolist() == [[0, 2, 3, -1, -1]] and ordered.count.tolist() == [4]
    x = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    assert apply(ordered, x).flatten().tolist() == [1, 100, 1010, 0, 0]


def test_leaving_order_of_a_selection_only_sorts():
    assert in_order(Reduction(torch.tensor([[5, 1, 3]]))).anchor.tolist() == [[1, 3, 5]]


@pytest.mark.parametrize("selects_first", [True, False])
def test_two_reductions_in_one_equal_one_after_the_other(selects_first):
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    select = Reduction(torch.tensor([[4, 0, 2], [1, 3, 0]]))
    spread = Reduction(
        torch.tensor([[1, 4, 2], [0, 2, 3]]),
        torch.tensor([[[0, 1], [0, -1], [2, -1], [-1, -1], [1, 2]], [[0, -1], [1, 0], [1, -1], [2, -1], [2, 1]]]),
        torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1)),
    )
    second = Reduction(
        torch.tensor([[2, 0], [1, -1]]), torch.tensor([[[1], [0], [0]], [[1], [0], [1]]]), torch.full((2, 3, 1), 0.5)
    )
    first = select if selects_first else spread
    whole = then(first, second, 5)
    assert torch.allclose(apply(whole, x), apply(second, apply(first, x)), atol=1e-6)
    assert torch.equal(whole.anchor, apply_position(second, first.anchor))


def test_selections_in_one_keep_the_tokens_of_the_first():
    whole = then(Reduction(torch.tensor([[4, 0, 2]])), Reduction(torch.tensor([[2, 1]])), 5)
    x = torch.arange(5.0).view(1, 5, 1)
    assert whole.anchor.tolist() == [[2, 0]] and apply(whole, x).flatten().tolist() == [2, 0]


def test_cache_entries_are_evicted_and_merged_per_head():
    keys = torch.tensor([[[[1.0], [2.0], [3.0]], [[10.0], [20.0], [30.0]]]])
    keep = torch.tensor([[[0, 2], [1, 2]]])
    assert apply_kv(KVReduction(keep), keys).squeeze(-1).tolist() == [[[1, 3], [20, 30]]]
    merged = KVReduction(keep, torch.tensor([[[0, 1, 1], [-1, 0, 1]]]), torch.tensor([[[1, 0.25, 0.75], [0, 1, 1.0]]]))
    assert apply_kv(merged, keys).squeeze(-1).tolist() == [[[1, 2.75], [20, 30]]]


def test_a_signal_is_known_by_kind_and_tag():
    assert (
        Signal("keys", 3).key == "keys" and Signal("received_attention", 8, "middle").key == "received_attention.middle"
    )
    with pytest.raises(ValueError, match="unknown signal kind 'mood'; known: accumulated_attention"):
        Signal("mood")


def test_a_site_gets_the_latest_block_asked_for_that_is_not_after_it():
    class Twice(Compressor):
        def signals(self, depth):
            return frozenset(
                {Signal("last_query", 3), Signal("last_query", 7), Signal("keys"), Signal("keys", 2, "deep")}
            )

    assert Twice().signals_at(3, 8) == {Signal("last_query", 3), Signal("keys"), Signal("keys", 2, "deep")}
    assert Twice().signals_at(7, 8) == {Signal("last_query", 7), Signal("keys"), Signal("keys", 2, "deep")}


def test_a_selector_sorts_in_float32_with_ties_to_the_lower_index(tiny):
    class Level(Selector):
        name = "level"

        def score(self, tokens):
            return tokens.size

    tokens = tiny(n=6, size=torch.tensor([[1.0, 2, 1, 2, 1, 1]]))
    assert Level().reduce(tokens, 4).anchor.tolist() == [[0, 1, 2, 3]]
    assert Level().reduce(tokens, 2).anchor.tolist() == [[1, 3]]

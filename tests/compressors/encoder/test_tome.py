import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, apply_size, in_order
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast
FEATURES = torch.tensor([[[1, 0], [1, 0.2], [0, 1], [0.1, 1], [1, 1], [-1, 0.5]]])


def test_two_best_pairs_merge_into_means(tiny):
    tokens = tiny(n=6, grid=(1, 2, 3), x=FEATURES, keys=FEATURES)
    reduction = make("encoder", "tome").reduce(tokens, 4)
    merged, size = apply(reduction, FEATURES), apply_size(reduction, tokens.size)
    assert torch.allclose(merged, torch.tensor([[[1, 1], [1, 0.1], [0.05, 1], [-1, 0.5]]]))  # [even that stay, odd]
    assert size.tolist() == [[1, 2, 2, 1]]
    assert torch.allclose((size.unsqueeze(-1) * merged).sum(1), torch.tensor([[2.1, 3.7]]))
    assert in_order(reduction).anchor.tolist() == [[1, 3, 4, 5]]


def test_without_a_merge_nothing_changes_and_log_sizes_are_zero(tiny):
    tokens = tiny(n=6, grid=(1, 2, 3), batch=2)
    reduction = make("encoder", "tome").reduce(tokens, 6)
    assert torch.equal(apply(reduction, tokens.x), tokens.x)
    assert (apply_size(reduction, tokens.size).log() == 0).all()


@pytest.mark.parametrize("count", [1, 7, 12])
def test_sizes_add_up_and_their_weighted_sum_is_conserved(tiny, count):
    tokens = tiny(n=13, grid=(1, 1, 13), batch=2)
    reduction = make("encoder", "tome").reduce(tokens, count)
    size = apply_size(reduction, tokens.size)
    assert size.sum(1).tolist() == [13, 13]
    assert torch.allclose((size.unsqueeze(-1) * apply(reduction, tokens.x)).sum(1), tokens.x.sum(1), atol=1e-5)


def test_several_sources_may_share_one_destination(tiny):
    keys = torch.tensor([[[1.0, 0], [1, 0.1], [1, 0.2], [-1, 0], [1, 0.3], [-1, -1]]])
    reduction = make("encoder", "tome").reduce(tiny(n=6, grid=(1, 2, 3), keys=keys, x=keys), 3)
    assert reduction.anchor.tolist() == [[1, 3, 5]]
    assert apply_size(reduction, torch.ones(1, 6)).tolist() == [[4, 1, 1]]


def test_a_mean_counts_what_each_token_already_stands_for(tiny):
    tokens = tiny(n=2, grid=(1, 1, 2), x=torch.tensor([[[0.0], [4.0]]]), size=torch.tensor([[3.0, 1.0]]))
    reduction = make("encoder", "tome").reduce(tokens, 1)
    assert apply(reduction, tokens.x).item() == 1 and apply_size(reduction, tokens.size).item() == 4


@pytest.mark.parametrize(
    ("count", "removed"),
    [
        (288, [13] * 12 + [12] * 11),
        (192, [17] * 16 + [16] * 7),
        (144, [19] * 18 + [18] * 5),
        (128, [20] * 11 + [19] * 12),
        (64, [23] * 6 + [22] * 17),
    ],
)
def test_removals_of_a_large_clip_tower_are_spread_evenly(count, removed):
    sites = make("encoder", "tome").sites(576, count, 23)
    counts = [576] + [left for _, left in sites]
    assert [before - after for before, after in zip(counts, counts[1:], strict=False)] == removed
    assert [layer for layer, _ in sites] == list(range(23))


def test_what_a_block_cannot_halve_away_goes_to_earlier_blocks():
    assert make("encoder", "tome").sites(64, 2, 6) == [(0, 53), (1, 32), (2, 16), (3, 8), (4, 4), (5, 2)]
    assert make("encoder", "tome").sites(64, 1, 6) == [(0, 32), (1, 16), (2, 8), (3, 4), (4, 2), (5, 1)]


def test_blocks_with_nothing_to_remove_are_no_sites():
    assert make("encoder", "tome").sites(64, 62, 6) == [(0, 63), (1, 62)]


def test_a_count_that_halving_cannot_reach_is_refused():
    with pytest.raises(ValueError, match="count 3 is below 4: 4 blocks can at most halve 64 tokens"):
        make("encoder", "tome").sites(64, 3, 4)


def test_each_block_is_given_its_own_keys():
    assert make("encoder", "tome").signals_at(5, 23) == {Signal("keys", 5)}


def test_attention_with_log_sizes_cannot_tell_a_merged_twin_from_two_tokens(tiny):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 3, generator=generator)
    x[0, 2] = x[0, 1]  # tokens 1 and 2 are twins: 2 is even and merges into 1
    tokens = tiny(n=4, grid=(1, 2, 2), x=x, keys=x)
    reduction = make("encoder", "tome").reduce(tokens, 3)
    merged, size = apply(reduction, x), apply_size(reduction, tokens.size)
    query = torch.randn(1, 1, 3, generator=generator)
    separately = (query @ x.mT).softmax(-1) @ x
    together = (query @ merged.mT + size.log().unsqueeze(1)).softmax(-1) @ merged
    assert sorted(size[0].tolist()) == [1, 1, 2] and torch.allclose(separately, together, atol=1e-6)


def test_rows_merge_by_their_own_keys(tiny):
    tokens = tiny(
        n=6, grid=(1, 2, 3), x=FEATURES.repeat(2, 1, 1), keys=torch.cat([FEATURES, FEATURES.flip(1)]), batch=2
    )
    reduction = make("encoder", "tome").reduce(tokens, 5)
    assert [sorted(row) for row in reduction.anchor.tolist()] == [[0, 1, 3, 4, 5], [0, 1, 3, 4, 5]]
    swapped = dataclasses.replace(tokens, signals={"keys": tokens.signals["keys"].flip(0)})
    again = make("encoder", "tome").reduce(swapped, 5)
    assert torch.equal(again.into, reduction.into.flip(0))

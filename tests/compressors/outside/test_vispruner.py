import pytest
import torch
from torch.nn.functional import normalize

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

ATTENTION = torch.tensor([0.05, 0.30, 0.02, 0.08, 0.25, 0.10, 0.12, 0.08])
FEATURES = torch.tensor(
    [[1.0, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1], [0, 1, 1], [1, 0.2, 0], [0, 0.1, 1], [1, 1, 0]]
)


@pytest.fixture
def example(tiny):
    return tiny(n=8, grid=(1, 2, 4), x=FEATURES.unsqueeze(0), cls_attention=ATTENTION.view(1, 1, 8))


def test_important_tokens_stay_and_duplicates_go_round_by_round(example):
    assert make("outside", "vispruner", step=8).reduce(example, 4).anchor.tolist() == [[1, 2, 4, 7]]


def test_one_removal_in_a_round_changes_who_is_compared(example):
    assert make("outside", "vispruner").reduce(example, 4).anchor.tolist() == [by_loops(FEATURES, ATTENTION, 4, 0.5, 1)]


def by_loops(x, attention, count, share, step):
    """The same, token by token."""
    unit = normalize(x, dim=-1)
    order = sorted(range(len(x)), key=lambda i: (-float(attention[i]), i))
    important = max(1, int(count * share))
    left = order[important:]
    while len(left) > count - important > 0:
        a, b = left[::2], left[1::2]
        best = [max(round(float(unit[i] @ unit[j]) * 2**20) for j in b) for i in a]
        by = sorted(range(len(a)), key=lambda k: -best[k])
        left = [a[k] for k in by[min(step, len(left) - count + important, len(a)) :]] + b
    return sorted(order[:important] + (left if count > important else []))


@pytest.mark.parametrize("n", [9, 24, 35])
def test_equals_the_rounds_by_loops(tiny, n):
    tokens = tiny(n=n, grid=(1, 1, n), seed=n)
    attention = tokens.signals["cls_attention"].mean(1)[0]
    for count in (1, 2, n // 2, n - 1, n):
        for share, step in ((0.0, 1), (0.5, 3), (0.75, 8)):
            found = make("outside", "vispruner", share=share, step=step).reduce(tokens, count).anchor[0].tolist()
            assert found == by_loops(tokens.x[0], attention, count, share, step)


def test_a_share_of_one_is_the_attention_ranking(example):
    assert make("outside", "vispruner", share=1.0).reduce(example, 4).anchor.tolist() == [[1, 4, 5, 6]]


def test_all_tokens_stay_when_all_are_asked_for(example):
    assert make("outside", "vispruner").reduce(example, 8).anchor.tolist() == [list(range(8))]


@pytest.mark.parametrize(
    ("count", "share", "split"), [(128, 0.5, (64, 64)), (64, 0.75, (48, 16)), (50, 0.5, (25, 25)), (1, 0.5, (1, 0))]
)
def test_published_splits_and_at_least_one_important_token(count, share, split):
    assert make("outside", "vispruner", share=share).split(count) == split


def test_reads_the_attention_of_the_block_that_feeds_the_projector():
    assert make("outside", "vispruner").signals(23) == {Signal("cls_attention", -1)}


@pytest.mark.parametrize(("arguments", "message"), [({"share": 1.5}, "share 1.5 is outside"), ({"step": 0}, "step 0")])
def test_wrong_hyperparameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"vispruner: {message}"):
        make("outside", "vispruner", **arguments)

import pytest
import torch

from foveate.compressors.matching import cosine
from foveate.compressors.redundancy import Votes, crowded
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

KEYS = torch.tensor([[[1, 0], [1, 0.1], [0, 1], [1, 0.2], [1, 0.05], [0.1, 1], [-1, 0], [-1, 0.3]]])


@pytest.fixture
def example(tiny):
    return tiny(n=8, grid=(1, 2, 4), keys=KEYS)


def test_even_tokens_with_many_joints_vote_themselves_out(example):
    may_go, score = Votes(0.75, 2, 10.0)(cosine(KEYS, KEYS))
    assert may_go.tolist() == [2]
    assert score[0, ::2].tolist() == pytest.approx([21.57, 11.59, 22.94, 7.99], abs=0.01)
    reduction = make("encoder", "saint", degree=2, clip=False).reduce(example, 8)
    assert reduction.anchor.tolist() == [[1, 2, 3, 5, 6, 7]]


def test_the_count_is_met_by_the_best_votes_or_by_the_full_graph(example):
    assert make("encoder", "saint", degree=2).reduce(example, 7).anchor.tolist() == [[0, 1, 2, 3, 5, 6, 7]]
    # after 4 and 0 have gone by vote, 2 is most like the six that are left, whose sum points upwards
    method = make("encoder", "saint", degree=2)
    assert method.reduce(example, 5).anchor.tolist() == [[1, 3, 5, 6, 7]]
    for count in range(1, 9):
        reduction = method.reduce(example, count)
        assert reduction.anchor.shape == (1, count) and reduction.count is None


def test_votes_may_go_below_the_ceiling_by_row(tiny):
    apart = torch.eye(8).unsqueeze(0)
    keys = torch.cat([torch.ones(1, 8, 8), apart])
    tokens = tiny(n=8, grid=(1, 2, 4), batch=2, keys=keys)
    reduction = make("encoder", "saint", degree=4, clip=False).reduce(tokens, 7)
    assert reduction.count.tolist() == [4, 7] and reduction.anchor[0].tolist() == [1, 3, 5, 7, -1, -1, -1]


@pytest.mark.parametrize(("n", "left"), [(8, 4), (9, 4)])
def test_equal_tokens_lose_their_even_half_unless_joints_are_too_few(tiny, n, left):
    tokens = tiny(n=n, grid=(1, 1, n), keys=torch.ones(1, n, 3))
    assert make("encoder", "saint", degree=4, clip=False).reduce(tokens, n).anchor.shape == (1, left)
    assert make("encoder", "saint", degree=5, clip=False).reduce(tokens, n).anchor.shape == (1, n)


def test_a_higher_threshold_keeps_more_and_votes_take_half_at_most(tiny):
    tokens = tiny(n=41, grid=(1, 1, 41), batch=3, seed=1)
    kept = []
    for threshold in (-1.0, 0.0, 0.3, 0.6, 0.9, 1.1):
        reduction = make("encoder", "saint", threshold=threshold, clip=False).reduce(tokens, 41)
        kept.append((reduction.anchor >= 0).sum(1).tolist())
    assert all(a <= b for low, high in zip(kept, kept[1:], strict=False) for a, b in zip(low, high, strict=True))
    assert min(kept[0]) >= 41 // 2 and kept[-1] == [41] * 3


def full_graph(keys, count, divisor):
    """The full graph by loops."""
    left, likeness = list(range(len(keys))), cosine(keys, keys)
    while len(left) > count:
        removed = min(len(left) - count, max(1, len(left) // divisor))
        by = sorted(left, key=lambda i: (-float(likeness[i, left].sum()), i))
        left = sorted(by[removed:])
    return left


@pytest.mark.parametrize("count", [1, 2, 11, 39, 40])
def test_the_full_graph_equals_its_loops(tiny, count):
    tokens = tiny(n=40, grid=(1, 5, 8), batch=2)
    method = make("encoder", "saint", form="full")
    found = method.reduce(tokens, count).anchor.tolist()
    assert found == [full_graph(keys, count, 16) for keys in tokens.signals["keys"]]


def test_rows_end_at_their_own_counts():
    likeness = torch.ones(2, 6, 6)
    left = crowded(likeness, torch.ones(2, 6, dtype=torch.bool), torch.tensor([2, 5]), 16)
    assert left.sum(-1).tolist() == [2, 5]


def test_votes_run_in_the_first_half_and_the_full_graph_in_one_late_block():
    votes, full = make("encoder", "saint"), make("encoder", "saint", form="full", layers=((19, 19), 23))
    assert [layer for layer, _ in votes.sites(576, 288, 23)] == list(range(12))
    assert votes.sites(64, 32, 6) == [(0, 53), (1, 42), (2, 32)]
    assert votes.signals_at(1, 6) == {Signal("keys", 1)}
    assert full.sites(576, 375, 23) == [(19, 375)] and full.signals(23) == {Signal("keys", 19)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "half"}, "form 'half'"),
        ({"degree": 0}, "degree 0 or divisor 16 is below 1"),
        ({"layers": ((5, 23), 23)}, r"layers 5 to 23 do not ascend within 0\.\.22"),
    ],
)
def test_wrong_hyperparameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"saint: {message}"):
        make("encoder", "saint", **arguments)

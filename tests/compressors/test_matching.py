import pytest
import torch
from torch.nn.functional import normalize

from foveate.compressors.base import apply, apply_size
from foveate.compressors.matching import bipartite, cosine, merge_down, rounds

pytestmark = pytest.mark.fast


def test_cosine_of_pairs_and_of_a_zero_vector():
    a = torch.tensor([[[3.0, 0], [1, 1], [0, 0]]])
    assert cosine(a, a)[0].tolist() == [
        [1, pytest.approx(0.5**0.5, abs=1e-6), 0],
        [pytest.approx(0.5**0.5, abs=1e-6), 1, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize("length", [3, 8, 17, 64])
def test_equal_vectors_tie_exactly_however_they_are_summed(length):
    vector = torch.randn(length, generator=torch.Generator().manual_seed(0))
    every = torch.stack([vector, vector * 3, vector / 7]).repeat(11, 1).unsqueeze(0)
    assert (cosine(every, every) == 1).all()


def by_loops(metric, size, r):
    """The same matching, token by token: which even indices go, and where to."""
    unit = normalize(metric, dim=-1)
    found = []
    for i in range(0, len(metric), 2):
        likeness = [float(unit[i] @ unit[j]) for j in range(1, len(metric), 2)]
        best = max(range(len(likeness)), key=lambda k: likeness[k])
        found.append((-likeness[best], i, 2 * best + 1))
    return {i: j for _, i, j in sorted(found)[:r]}


@pytest.mark.parametrize("n", [2, 5, 12, 13])
def test_equals_the_matching_by_loops(n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(1, n, 4, generator=generator)
    size = torch.randint(1, 5, (1, n), generator=generator).float()
    for r in range(1, n // 2 + 1):
        goes = by_loops(x[0], size[0], r)
        slots = [i for i in range(0, n, 2) if i not in goes] + list(range(1, n, 2))
        merged, weight = [], []
        for slot in slots:
            group = [slot] + [i for i, j in goes.items() if j == slot]
            weight.append(float(size[0, group].sum()))
            merged.append((size[0, group].unsqueeze(-1) * x[0, group]).sum(0) / weight[-1])
        reduction = bipartite(x, size, r)
        assert reduction.anchor.tolist() == [slots]
        assert torch.allclose(apply(reduction, x)[0], torch.stack(merged), atol=1e-5)
        assert apply_size(reduction, size).tolist() == [weight]


def test_rounds_halve_at_most_and_end_at_the_count():
    assert rounds(64, 5) == [32, 16, 8, 3] and rounds(12, 7) == [5] and rounds(5, 1) == [2, 1, 1] and rounds(4, 4) == []


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_merging_down_conserves_the_sum_weighted_by_size(count):
    generator = torch.Generator().manual_seed(0)
    x, size = torch.randn(2, 13, 3, generator=generator), torch.rand(2, 13, generator=generator) * 4 + 1
    reduction = merge_down(x, size, count)
    left = apply_size(reduction, size)
    assert reduction.anchor.shape == (2, count)
    assert torch.allclose(left.sum(1), size.sum(1))
    before, after = (size.unsqueeze(-1) * x).sum(1), (left.unsqueeze(-1) * apply(reduction, x)).sum(1)
    assert torch.allclose(before, after, atol=1e-4)

import pytest
import torch

from foveate.compressors.clusters import close, components, grown, representatives, sizes
from foveate.compressors.matching import cosine

pytestmark = pytest.mark.fast


def by_loops(joined):
    """Components by flooding."""
    n, label = len(joined), [-1] * len(joined)
    for start in range(n):
        stack = [start] if label[start] < 0 else []
        while stack:
            i = stack.pop()
            if label[i] < 0:
                label[i] = start
                stack += [j for j in range(n) if joined[i][j]]
    return label


@pytest.mark.parametrize("share", [0.02, 0.06, 0.3])
def test_components_equal_those_found_by_flooding(share):
    joined = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(1)) < share
    joined = joined | joined.mT
    assert components(joined).tolist() == [by_loops(row.tolist()) for row in joined]


def test_a_long_chain_is_one_component():
    chain = torch.zeros(1, 50, 50, dtype=torch.bool)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    chain[0, order[:-1], order[1:]] = True
    assert components(chain | chain.mT).tolist() == [[0] * 50]


def test_tokens_are_close_within_a_frame_and_a_reach():
    position = torch.tensor([[0, 1, 3, 4, 12, -1]])  # of two frames of 3 x 4
    near = close(position, (2, 3, 4), 2)[0].int().tolist()
    assert near == [
        [1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_clusters_that_are_too_large_are_split_by_a_higher_threshold():
    angle = torch.tensor([[0.0, 0.5, 1.0, 1.2, 3.0]])  # neighbours' cosines .878 .878 .980 -.227
    x = torch.stack([angle.cos(), angle.sin()], dim=-1)
    everywhere = torch.ones(1, 5, 5, dtype=torch.bool)
    likeness = cosine(x, x)
    assert grown(likeness, everywhere, 0.8, 0.05, 4).tolist() == [[0, 0, 0, 0, 4]]
    assert grown(likeness, everywhere, 0.8, 0.05, 3).tolist() == [[0, 1, 2, 2, 4]]  # at .9; .85 joins all four
    twins = torch.ones(1, 5, 5)
    assert grown(twins, everywhere, 0.8, 0.05, 1).tolist() == [[0] * 5]  # nothing parts equal tokens


def test_sizes_stand_at_the_labels():
    assert sizes(torch.tensor([[0, 0, 2, 0, 2]])).tolist() == [[3, 0, 2, 0, 0]]


def test_representatives_are_farthest_from_each_other_and_collect_their_like():
    place = torch.tensor([[0.0, 0.1, 0.5, 1.0, 5, 5.2]])
    likeness = -(place.unsqueeze(1) - place.unsqueeze(2)).abs()
    label = torch.tensor([[0, 0, 0, 0, 4, 4]])
    first = torch.tensor([[0.0, 3, 1, 2, 1, 1]])
    stands, owner = representatives(likeness, label, first, torch.tensor([[2, 0, 0, 0, 1, 0]]))
    assert stands.nonzero()[:, 1].tolist() == [1, 3, 4] and owner.tolist() == [[1, 1, 1, 3, 4, 4]]
    nobody = representatives(likeness, label, first, torch.tensor([[1, 0, 0, 0, 0, 0]]))[1]
    assert nobody.tolist() == [[1, 1, 1, 1, -1, -1]]


def test_equal_members_can_all_stand_for_themselves():
    stands, owner = representatives(
        torch.ones(1, 3, 3), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3), torch.tensor([[3, 0, 0]])
    )
    assert stands.all() and owner.tolist() == [[0, 1, 2]]

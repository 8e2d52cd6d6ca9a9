import pytest
import torch

from foveate.compressors.dpc_knn import clustered, flops
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

LINE = torch.tensor([0.0, 1, 2, 10, 11])


def of(points, count, neighbours, member=None):
    x = torch.as_tensor(points, dtype=torch.float32)
    x = (x.unsqueeze(-1) if x.ndim == 1 else x).unsqueeze(0)
    member = torch.ones(x.shape[:2], dtype=torch.bool) if member is None else torch.tensor([member])
    centre, owner = clustered(x, member, torch.tensor([count]), neighbours)
    return centre[0].nonzero()[:, 0].tolist(), owner[0].tolist()


def test_equally_dense_points_are_ordered_by_index():
    assert of(LINE, 2, 2) == ([0, 3], [0, 0, 0, 3, 3])  # densities all .6065, delta 11, 1, 1, 8, 1


def test_sparse_regions_are_overlooked():
    # densities .1889, .5134, .1889 and next to nothing: the pair far away is not chosen
    assert of(LINE, 2, 3) == ([0, 1], [0, 1, 1, 1, 1])


def test_as_many_centres_as_points_change_nothing_and_one_takes_all():
    assert of(LINE, 5, 2) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert of(LINE, 1, 2) == ([0], [0] * 5)


def test_points_that_are_not_there_neither_count_nor_belong():
    assert of([0.0, 5, 1, 2, 10, 11], 2, 2, [True, False, True, True, True, True]) == ([0, 4], [0, -1, 0, 0, 4, 4])
    assert of(LINE, 0, 2, [False] * 5) == ([], [-1] * 5)
    assert of(LINE, 0, 2) == ([], [-1] * 5)


def test_distances_are_divided_by_the_root_of_the_width():
    doubled = LINE.unsqueeze(-1).expand(-1, 4)  # |x| doubles, and so does sqrt(C)
    assert of(doubled, 2, 3) == of(LINE, 2, 3)


def test_equal_points_go_to_the_lower_index_wherever_they_lie():
    x = 100 + torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)).expand(1, 6, 64)
    centre, owner = clustered(x, torch.ones(1, 6, dtype=torch.bool), torch.tensor([2]), 3)
    assert centre[0].tolist() == [True, True, False, False, False, False]
    assert owner[0].tolist() == [0, 1, 0, 0, 0, 0]


def test_groups_do_not_see_each_other_and_members_add_up(matrix_flops):
    generator = torch.Generator().manual_seed(0)
    x, member = torch.randn(3, 20, 4, generator=generator), torch.rand(3, 20, generator=generator) > 0.3
    count = torch.tensor([4, 1, 7])
    centre, owner = clustered(x, member, count, 5)
    assert centre.sum(dim=1).tolist() == count.tolist()
    assert torch.equal(owner >= 0, member)
    for group in range(3):
        one = slice(group, group + 1)
        alone = clustered(x[one], member[one], count[one], 5)
        assert torch.equal(alone[0][0], centre[group]) and torch.equal(alone[1][0], owner[group])
    assert matrix_flops(lambda: clustered(x, member, count, 5)) == flops(3, 20, 4)


@pytest.mark.parametrize(
    ("stage", "name", "neighbours"), [("outside", "chat_univi", (3,) * 3), ("projector", "prunevid", 3)]
)
def test_far_points_have_no_density_where_features_are_large_unless_they_are_brought_to_one_size(
    tiny, stage, name, neighbours
):
    ground = 0.02 * torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    far = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    x = torch.cat([ground, far]).unsqueeze(0) + torch.tensor([0.0, 0, 0, 2])
    found = {}
    for unit in (False, True):
        for scale in (1.0, 20.0):
            row = tiny(n=14, grid=(1, 1, 14), x=scale * x)
            fine = make(stage, name, neighbours=neighbours, unit=unit).reduce(row, 6).anchor[0]
            found[unit, scale] = set(fine.tolist()) - {-1}
    assert {12, 13} <= found[False, 1.0] and not {12, 13} & found[False, 20.0]
    assert found[True, 1.0] == found[True, 20.0] and {12, 13} <= found[True, 1.0]

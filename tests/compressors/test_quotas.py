import pytest
import torch

from foveate.compressors.quotas import capped, one_each, shares

pytestmark = pytest.mark.fast


def parts(weight, total, **options):
    return shares(torch.tensor([weight]), torch.tensor([total]), **options)[0].tolist()


def test_whole_shares_are_exact():
    assert parts([40.0, 20, 40], 100) == [40, 20, 40]
    assert parts([0.1, 0.2, 0.7], 10) == [1, 2, 7]


def test_what_is_left_goes_to_the_largest_remainders_or_the_heaviest():
    assert parts([40.0, 21, 39], 10) == [4, 2, 4]  # 4, 2.1, 3.9
    assert parts([0.45, 0.29, 0.26], 5, heaviest=True) == [3, 1, 1]  # 2.25, 1.45, 1.3
    assert parts([0.45, 0.29, 0.26], 5) == [2, 2, 1]
    assert parts([1.0, 1, 1], 2) == [1, 1, 0]


def test_without_weight_parts_are_equal_and_a_part_without_weight_gets_nothing():
    assert parts([0.0, 0, 0], 6) == [2, 2, 2]
    assert parts([0.0, 1, 0], 3) == [0, 3, 0]


def test_overflow_is_split_by_weight_and_room():
    found = capped(torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([[4, 4, 8]]), torch.tensor([12]))
    # 9.6 1.2 1.2 -> 10 1 1, six over: rooms 3 and 7 take 1.8 and 4.2 of them
    assert found.tolist() == [[4, 3, 5]]


def test_parts_without_weight_take_what_nobody_else_can():
    assert capped(torch.tensor([[1.0, 0, 0]]), torch.tensor([[2, 3, 3]]), torch.tensor([7])).tolist() == [[2, 3, 2]]
    assert capped(torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 2, 2]]), torch.tensor([2])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("heaviest", [False, True])
def test_quotas_sum_to_the_total_and_fit_and_rows_do_not_mix(heaviest):
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(50, 7, generator=generator) ** 6
    room = torch.randint(0, 9, (50, 7), generator=generator)
    total = (room.sum(-1) * torch.rand(50, generator=generator)).long()
    found = capped(weight, room, total, heaviest)
    assert torch.equal(found.sum(-1), total) and (found <= room).all() and (found >= 0).all()
    for row in range(50):
        alone = capped(weight[row : row + 1], room[row : row + 1], total[row : row + 1], heaviest)
        assert torch.equal(alone[0], found[row])


def test_every_part_gets_one_first_and_the_rest_follows_the_shares():
    share, room = torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.tensor([[4, 4, 4, 4]])
    assert one_each(share, room, 10).tolist() == [[1, 4, 2, 3]]
    assert one_each(share, room, 5).tolist() == [[1, 2, 1, 1]]
    assert one_each(share, torch.tensor([[4, 1, 0, 4]]), 6).tolist() == [[1, 1, 0, 4]]


def test_more_parts_than_there_is_to_give_leave_the_largest_shares_one_each():
    share, room = torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.tensor([[4, 4, 4, 4]])
    assert one_each(share, room, 2).tolist() == [[0, 1, 0, 1]]


def test_where_there_is_less_room_than_that_all_of_it_is_filled():
    share, room = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[3, 2], [9, 9]])
    assert one_each(share, room, 8).tolist() == [[3, 2], [4, 4]]

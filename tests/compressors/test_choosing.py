import pytest
import torch

from foveate.compressors.choosing import first_max, marked, rank, rank_within, ranked, rows, selection

pytestmark = pytest.mark.fast


def test_equal_scores_are_ranked_by_index_and_tiers_come_first():
    score = torch.tensor([[1.0, 3, 3, 0], [2, 2, 2, 2]])
    assert ranked(score).tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    assert rank(score).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3]]
    assert ranked(score, torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])).tolist() == [[2, 3, 1, 0], [1, 3, 0, 2]]


def test_ranks_within_a_group_count_from_its_best():
    score, group = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.7]]), torch.tensor([[3, 0, 3, 3, 0]])
    assert rank_within(score, group).tolist() == [[2, 0, 0, 1, 1]]
    assert rank_within(torch.zeros(2, 3), torch.tensor([[0, 1, 2], [1, 1, 1]])).tolist() == [[0, 0, 0], [0, 1, 2]]


def test_rows_are_picked_and_marked():
    x = torch.arange(6.0).view(1, 3, 2)
    assert rows(x, torch.tensor([[2, 0]])).tolist() == [[[4, 5], [0, 1]]]
    assert marked(torch.zeros(1, 3), torch.tensor([[2, 0]])).tolist() == [[True, False, True]]


def test_a_mask_is_a_selection_with_counts_where_rows_differ():
    same = selection(torch.tensor([[True, False, True], [False, True, True]]))
    assert same.anchor.tolist() == [[0, 2], [1, 2]] and same.count is None and same.into is None
    ragged = selection(torch.tensor([[True, False, False], [False, True, True]]))
    assert ragged.anchor.tolist() == [[0, -1], [1, 2]] and ragged.count.tolist() == [1, 2]


def test_the_first_largest_entry_of_each_segment_is_found():
    value = torch.tensor([[1.0, 5, 5, -torch.inf, 2]])
    best, where = first_max(value, torch.tensor([[0, 1, 1, 2, 0]]), 4)
    assert best.tolist() == [[2, 5, -torch.inf, -torch.inf]] and where.tolist() == [[4, 1, 5, 5]]

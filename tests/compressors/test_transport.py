import pytest
import torch

from foveate.compressors.transport import balanced, ranged, targets_alone

pytestmark = pytest.mark.fast

COST = torch.tensor([[[0.1, 0.2, 0.3], [0.6, 0.5, 0.7], [0.4, 0.3, 0.2]]])
RAISED = COST + torch.tensor([0.3, 0, 0]).view(1, 3, 1)


def test_what_sources_give_when_targets_alone_are_served():
    assert targets_alone(COST, 0.1).sum(2)[0].tolist() == pytest.approx([0.6398, 0.0155, 0.3447], abs=1e-4)
    assert targets_alone(RAISED, 0.1).sum(2)[0].tolist() == pytest.approx([0.1976, 0.0588, 0.7436], abs=1e-4)


def test_both_sides_served_say_next_to_nothing_of_the_sources():
    for cost in (COST, RAISED):  # a dear source is made up for
        assert balanced(cost, 0.1, 3).sum(2)[0].tolist() == pytest.approx([0.3308, 0.3314, 0.3377], abs=1e-4)
        sources_last = balanced(cost.transpose(1, 2), 0.1, 3).transpose(1, 2)
        assert sources_last.sum(2)[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_every_target_gets_its_share():
    cost = torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(0))
    for plan in (targets_alone(cost, 0.1), balanced(cost, 0.1, 3)):
        assert torch.allclose(plan.sum(1), torch.full((2, 5), 1 / 5), atol=1e-6)


def test_rows_are_brought_to_their_own_range():
    assert ranged(torch.tensor([[2.0, 4, 3], [7, 7, 7]])).tolist() == [[0, 1, 0.5], [0, 0, 0]]

import pytest
import torch

from foveate.compressors.frames_apart import WHOLE, apart, frames_of, leader, leading, paired, previous, spread

pytestmark = pytest.mark.fast


def test_references():
    assert previous(4).tolist() == [0, 0, 1, 2]
    assert leader(10, 8).tolist() == [0] * 8 + [8, 8]
    assert paired(10, 4).tolist() == [0, 0, 0, 2, 4, 4, 4, 6, 8, 8]


def test_a_frame_that_is_its_own_reference_is_farther_than_any_other():
    x = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [1, 1]], [[0, 1], [1, 1]]]).unsqueeze(0)
    found = apart(x, previous(3))
    assert found[0, 0].tolist() == [WHOLE] * 2
    assert found[0, 1:].flatten().tolist() == pytest.approx([0, 0.2929, 1, 0], abs=1e-4)
    assert apart(x, leader(3, 8))[0, 2].tolist() == pytest.approx([1, 0.2929], abs=1e-4)  # against frame 0


def test_rows_may_have_references_of_their_own():
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    found = apart(x, torch.stack([previous(4), leader(4, 2)]))
    assert torch.equal(found[:1], apart(x[:1], previous(4)))
    assert torch.equal(found[1:], apart(x[1:], leader(4, 2)))


def test_the_farthest_of_each_frame_lead_and_ties_go_to_the_lower_index():
    distance = torch.tensor([[[0.1, 0.3, 0.2], [0.5, 0.5, 0.5]]])
    assert leading(distance, torch.tensor([2, 1])).tolist() == [[[False, True, True], [True, False, False]]]


def test_quotas_add_up_and_whole_frames_come_first():
    reference = paired(6, 4)
    for count in range(1, 25):
        quota = spread(reference, 4, count)
        assert int(quota.sum()) == count and int(quota.max()) <= 4
    assert spread(reference, 4, 14).tolist() == [4, 2, 2, 1, 4, 1]
    assert spread(reference, 4, 3).tolist() == [2, 0, 0, 0, 1, 0]  # not even the whole frames fit


def test_parts_of_a_grid_are_refused(tiny):
    with pytest.raises(ValueError, match="evs: 10 tokens are not a whole 3 x 2 x 2 grid"):
        frames_of("evs", tiny(n=10, grid=(3, 2, 2)))

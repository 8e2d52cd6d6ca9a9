"""Videos with tokens left out: which stay, and that the decoder's loss is that of the same tokens masked."""

import pytest
import torch

from foveate.compressors.frames_apart import WHOLE
from foveate.models.reference_video.architecture import fresh
from foveate.models.reference_video.thinning import WAYS, changes, kept, unlike

pytestmark = pytest.mark.fast


def film(frames=8):
    """Two still videos (2, T, 3, 48, 48) in which patch 7 of frame 3 flashes."""
    pixels = torch.randn(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(0)).repeat(1, frames, 1, 1, 1)
    pixels[:, 3, :, 8:16, 8:16] += 1
    return pixels


def test_changes_are_of_the_patch_that_flashes_when_it_comes_and_goes():
    changed = changes(film())
    assert changed.shape == (2, 8, 36)
    where = torch.nonzero(changed[0] > 1e-4).tolist()
    assert where == [[3, 7], [4, 7]] and changed[0, 3, 7].item() == pytest.approx(1, abs=1e-4)


def test_tokens_are_unlike_those_before_in_frames_that_change_and_most_where_they_do():
    torch.manual_seed(0)
    found = unlike(fresh().eval(), film())
    assert found.shape == (2, 8, 36) and (found[:, 0] == WHOLE).all()
    assert found[:, (1, 2, 5, 6, 7)].abs().max() < 1e-5
    assert (found[:, 3:5].argmax(-1) == 7).all()


@pytest.mark.parametrize("way", WAYS)
def test_what_stays_is_ascending_unlike_its_neighbour_and_of_the_share_asked_for(way):
    left = kept(changes(film()), way, 0.25, 1)
    assert (left.diff(dim=1) > 0).all() and torch.equal(left, kept(changes(film()), way, 0.25, 1))
    assert left.shape[1] == pytest.approx(0.25 * 288, abs=7)
    if way != "lot":
        assert {*range(36), 3 * 36 + 7, 4 * 36 + 7} <= set(left[0].tolist())

import math

import pytest
import torch

from foveate.compressors.projector.vidcom2 import likeness, ratios, steady
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_unique_frames_get_more():
    found = ratios(torch.tensor([[-3, -3.01, -3.02, -3.05]]), 0.25, 0.01)
    assert found[0].tolist() == pytest.approx([0.3531, 0.2484, 0.2099, 0.1886], abs=1e-4)
    assert float(found.sum()) == pytest.approx(1)


def test_frames_alike_share_equally_and_none_keeps_more_than_it_has():
    assert ratios(torch.full((1, 5), -2.0), 0.3, 0.01)[0].tolist() == pytest.approx([0.3] * 5)
    full = ratios(torch.tensor([[-3.0, -3.01]]), 1.0, 0.01)[0]
    assert full[0] == 1 and full[1] < 1  # asked for everything, the rule alone is no identity


def test_half_of_the_channels_vary_least_and_are_made_unit_length():
    x = torch.tensor([[5.0, 3, 0, 4], [-5, 3, 9, 4], [7, 3, -9, 4]]).view(1, 3, 1, 4)
    assert torch.allclose(steady(x)[0, :, 0], torch.tensor([0.6, 0.8]).expand(3, 2))


def test_likeness_adds_five_widths():
    x, centre = torch.tensor([1.0, 0]).view(1, 1, 1, 2), torch.tensor([0.0, 0]).view(1, 1, 1, 2)
    wanted = sum(math.exp(-1 / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))
    assert likeness(x, centre).item() == pytest.approx(wanted)


def clip(frames=4, each=12, dim=8, seed=0):
    return torch.randn(1, frames * each, dim, generator=torch.Generator().manual_seed(seed))


def test_the_count_is_met_and_every_frame_keeps_a_token(tiny):
    x = 1 + 0.1 * clip()
    x[:, 24:36] -= 2  # frame 2 is unlike the others
    tokens, per_frame = tiny(n=48, grid=(4, 3, 4), x=x), {}
    for count in range(4, 49):
        anchor = make("projector", "vidcom2").reduce(tokens, count).anchor[0]
        per_frame[count] = (anchor // 12).bincount(minlength=4)
        assert len(anchor) == count and int(per_frame[count].min()) >= 1
    assert per_frame[12].tolist() == [2, 2, 6, 2]  # 5.25 and 2.25 rounded; the one that is missing is the least alike


def test_identical_frames_share_and_the_tokens_least_like_their_mean_stay(tiny):
    one = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(3))
    tokens = tiny(n=48, grid=(4, 3, 4), x=one.repeat(1, 4, 1))
    anchor = make("projector", "vidcom2").reduce(tokens, 16).anchor[0].view(4, 4)
    assert torch.equal(anchor % 12, (anchor[:1] % 12).expand(4, 4))
    unit = steady(one.view(1, 1, 12, 8))
    far = likeness(unit, unit.mean(dim=2, keepdim=True))[0, 0].argsort()[:4].sort().values
    assert torch.equal(anchor[0] % 12, far)


def test_the_first_frame_is_not_protected(tiny):
    x = torch.zeros(1, 48, 8)
    x[..., 0] = 1
    x[:, 36:] = clip(1)[:, :12] * 0.1 + torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0])
    x[..., 4:] += clip(4, 12, 4, seed=7) * 5  # channels that vary are not looked at
    found = make("projector", "vidcom2").reduce(tiny(n=48, grid=(4, 3, 4), x=x), 12).anchor[0]
    assert int((found // 12 == 0).sum()) < int((found // 12 == 3).sum())


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"vidcom2: temperature 0.0 is not above 0"):
        make("projector", "vidcom2", temperature=0.0)

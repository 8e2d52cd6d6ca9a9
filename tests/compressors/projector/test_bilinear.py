import dataclasses

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def values(made):
    return made.x.flatten().tolist()


def test_half_the_side_is_the_mean_of_four(grid_of):
    made = make("projector", "bilinear").resample(grid_of(range(36), 1, 6, 6), 9)
    assert values(made) == [3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5]
    assert made.grid_out == (1, 3, 3) and made.position.tolist() == [[0, 2, 4, 12, 14, 16, 24, 26, 28]]


def test_an_odd_side_is_read_between_rows(grid_of):
    made = make("projector", "bilinear").resample(grid_of(range(25), 1, 5, 5), 9)
    wanted = [2, 3.667, 5.333, 10.333, 12, 13.667, 18.667, 20.333, 22]
    assert values(made) == pytest.approx(wanted, abs=5e-4)
    assert made.position.tolist() == [[0, 2, 4, 10, 12, 14, 20, 22, 24]]


def test_a_third_of_the_side_is_the_middle_token_of_nine(grid_of):
    made = make("projector", "bilinear").resample(grid_of(range(81), 1, 9, 9), 9)
    assert values(made) == [9 * row + column for row in (1, 4, 7) for column in (1, 4, 7)]


def test_a_quarter_of_the_side_is_the_mean_of_the_middle_four(grid_of):
    made = make("projector", "bilinear").resample(grid_of(range(64), 1, 8, 8), 4)
    blocks = torch.arange(64.0).view(8, 8).unfold(0, 4, 4).unfold(1, 4, 4)  # (2, 2, 4, 4)
    assert values(made) == blocks[..., 1:3, 1:3].mean((-1, -2)).flatten().tolist()


def test_weights_of_27_patches_at_14(tiny):
    rows = torch.eye(27).repeat_interleave(27, dim=0).unsqueeze(0)  # feature r of a token is 1 in row r
    made = make("projector", "bilinear").resample(tiny(n=729, grid=(1, 27, 27), x=rows), 196)
    weight = made.x.view(14, 14, 27)[:, 0]
    assert made.grid_out == (1, 14, 14)
    for slot, (first, a, b) in {0: (0, 0.536, 0.464), 1: (2, 0.607, 0.393), 13: (25, 0.464, 0.536)}.items():
        assert weight[slot, first : first + 2].tolist() == pytest.approx([a, b], abs=5e-4)
        assert weight[slot].sum().item() == pytest.approx(1)


def test_all_tokens_are_themselves_and_one_is_the_middle(grid_of):
    tokens = grid_of(range(15), 1, 3, 5)
    assert values(make("projector", "bilinear").resample(tokens, 15)) == values(tokens)
    assert values(make("projector", "bilinear").resample(tokens, 1)) == [7]


def test_frames_are_resized_one_by_one(grid_of):
    made = make("projector", "bilinear").resample(grid_of(range(32), 2, 4, 4), 8)
    assert values(made) == [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5] and made.grid_out == (2, 2, 2)


def test_along_time_each_place_is_interpolated_by_itself(grid_of):
    tokens = grid_of([0, 100, 2, 102, 8, 108, 10, 110], 4, 1, 2)
    method = make("projector", "bilinear", axis="time")
    assert method.reachable(tokens.grid) == [2, 4, 6, 8]
    made = method.resample(tokens, 4)
    assert values(made) == [1, 101, 9, 109] and made.grid_out == (2, 1, 2)
    assert made.position.tolist() == [[0, 1, 4, 5]]
    assert values(method.resample(tokens, 8)) == values(tokens)
    thirds = values(method.resample(tokens, 6))[::2]  # read at frames 1/6, 3/2 and 17/6
    assert thirds == pytest.approx([1 / 3, 5, 8 + 2 * 5 / 6])


@pytest.mark.parametrize(("side", "half"), [(27, 14), (5, 3), (24, 12)])
def test_the_published_sides_are_reachable(side, half):
    assert half * half in make("projector", "bilinear").reachable((1, side, side))


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="bilinear: axis 'depth' is neither 'space' nor 'time'"):
        make("projector", "bilinear", axis="depth")
    part = dataclasses.replace(tiny(n=10), grid=(1, 3, 4))
    with pytest.raises(ValueError, match="bilinear: 10 tokens are not a whole 1 x 3 x 4 grid"):
        make("projector", "bilinear").resample(part, 6)

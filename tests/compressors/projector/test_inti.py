"""InTI: blends of neighbouring frames."""

import math

import pytest
import torch

from foveate.compressors.learned import Widths, on_trial
from foveate.compressors.projector.inti import Network
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def ready(grid, features=1):
    return on_trial(make("projector", "inti"), grid, features)


def moved(method, seed=0):
    """The same with weights far from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return method


def test_at_first_a_pair_becomes_its_mean_and_eight_frames_four_two_one(grid_of):
    film = [float(t) for t in range(8) for _ in range(6)]
    for frames, wanted in ((4, [0.5, 2.5, 4.5, 6.5]), (2, [1.5, 5.5]), (1, [3.5])):
        made = ready((8, 2, 3)).resample(grid_of(film, 8, 2, 3), 6 * frames)
        assert made.x.view(frames, 6).mean(1).tolist() == pytest.approx(wanted) and made.grid_out == (frames, 2, 3)
    assert list(make("projector", "inti").reachable((3, 2, 3))) == [6, 12, 18]


def test_weights_of_a_quarter_and_three_quarters_make_5_of_2_and_6(grid_of):
    method = ready((2, 1, 1))
    method.network.out.bias.data = torch.tensor([0.0, math.log(3)])
    assert method.resample(grid_of([2, 6], 2, 1, 1), 1).x.item() == pytest.approx(5)


def test_equal_frames_stay_and_others_lie_between_whatever_the_weights(tiny):
    method = moved(ready((2, 3, 4), 16))
    still = tiny(n=24, grid=(2, 3, 4), x=torch.randn(1, 12, 16).repeat(1, 2, 1))
    assert torch.allclose(method.resample(still, 12).x, still.x[:, :12], atol=1e-5)
    tokens = tiny(n=24, grid=(2, 3, 4), dim=16)
    made, one, other = method.resample(tokens, 12).x, tokens.x[:, :12], tokens.x[:, 12:]
    assert (made >= one.minimum(other) - 1e-5).all() and (made <= one.maximum(other) + 1e-5).all()
    assert not torch.allclose(made, (one + other) / 2, atol=1e-2)


def test_swapped_frames_are_swapped_halves_of_its_matrices(tiny):
    network = moved(ready((2, 3, 4), 16)).network
    one, other = torch.randn(2, 1, 3, 4, 16, generator=torch.Generator().manual_seed(1))
    there = network(one, other)
    with torch.no_grad():
        network.down.weight.copy_(network.down.weight.roll(16, dims=1))
        network.out.weight.copy_(network.out.weight.flip(0))
        network.out.bias.copy_(network.out.bias.flip(0))
    assert torch.allclose(network(other, one), there, atol=1e-5)


def test_a_count_between_halves_blends_the_pairs_that_are_most_alike(grid_of, tiny):
    x = torch.eye(5)[[0, 1, 2, 2, 3]].view(1, 5, 5)  # frames 2 and 3 are the same; 4 has no partner
    made = ready((5, 1, 1), 5).resample(tiny(n=5, grid=(5, 1, 1), x=x), 4)
    assert torch.allclose(made.x, torch.eye(5)[None, :4]) and made.position.tolist() == [[0, 1, 2, 4]]
    half = ready((5, 1, 1), 5).resample(tiny(n=5, grid=(5, 1, 1), x=x), 3)
    assert half.position.tolist() == [[0, 2, 4]] and torch.equal(half.x[0, 2], x[0, 4])


def test_the_size_of_its_network():
    network = Network(1024)
    weights = sum(p.numel() for key, p in network.named_parameters() if key.endswith("weight"))
    assert weights == 2048 * 128 + 128 * (1 + 9 + 25) + 128 * 128 + 128 * 2 == 283_264
    built = make("projector", "inti").build(Widths(1024, 4096, 0, 23, 32, (8, 24, 24)))
    assert sum(p.numel() for p in built.parameters()) == 283_264 + 5 * 128 + 2

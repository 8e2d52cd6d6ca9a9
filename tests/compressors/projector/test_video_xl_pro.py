"""Video-XL-Pro's synthesizer: its counts, what it computes at first, and what its attention in time is."""

import pytest
import torch

from foveate.compressors.learned import Widths, on_trial, untrained
from foveate.compressors.projector.video_xl_pro import Halving, InTime, Network
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def plain(grid, features=1, **options):
    """One whose projector hands features on as they are: GELU of x + 100 is x + 100."""
    one, hundred = torch.eye(features), torch.full((features,), 100.0)
    widths = Widths(features, features, 0, 4, 4, grid)
    return untrained(make("projector", "video_xl_pro", **options), widths, ((one, hundred), (one, -hundred)))


def moved(module, seed=0):
    """Weights far from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def test_four_frames_of_24_x_24_become_144_tokens_and_ten_frames_432():
    method = make("projector", "video_xl_pro")
    assert list(method.reachable((4, 24, 24))) == [144, 288]
    assert list(method.reachable((10, 24, 24))) == [432, 720]
    assert method.by_count((10, 24, 24)) == {432: 2, 720: 1}
    assert method.by_count((1, 24, 24)) == {144: 2}
    network = Network(8, 8, 6, ())
    x = torch.randn(1, 4, 24, 24, 8, generator=torch.Generator().manual_seed(0))
    assert network.synthesized(x, 2).shape == (1, 1, 24, 24, 8) and network(x, 2).shape == (1, 6, 12, 12)
    ten = torch.randn(1, 10, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    assert network.synthesized(ten, 2).shape[1] == 3 and network.synthesized(ten, 1).shape[1] == 5


@pytest.mark.parametrize("hidden", [None, 4])
def test_at_first_it_is_the_mean_of_four_frames_and_four_places(tiny, hidden):
    method, tokens = plain((4, 4, 6), 4, hidden=hidden), tiny(n=96, grid=(4, 4, 6), dim=4, batch=2)
    made = method.resample(tokens, 6)
    blocks = tokens.x.view(2, 4, 2, 2, 3, 2, 4).mean(dim=(1, 3, 5)).view(2, 6, 4)
    assert torch.allclose(made.x, blocks, atol=1e-4) and made.grid_out == (1, 2, 3)
    made = method.resample(tokens, 12)
    blocks = tokens.x.view(2, 2, 2, 2, 2, 3, 2, 4).mean(dim=(2, 4, 6)).view(2, 12, 4)
    assert torch.allclose(made.x, blocks, atol=1e-4) and made.grid_out == (2, 2, 3)


@pytest.mark.parametrize("hidden", [None, 1])
def test_the_last_frame_fills_the_last_group_and_odd_borders_are_means_of_what_there_is(grid_of, hidden):
    film = grid_of([1, 2, 3, 4, 9, 5], 6, 1, 1)
    assert plain((6, 1, 1), hidden=hidden).resample(film, 2).x.flatten().tolist() == pytest.approx([2.5, 6], abs=1e-3)
    made = plain((6, 1, 1), hidden=hidden).resample(film, 3)  # 9 and 5, nothing of the two behind them
    assert made.x.flatten().tolist() == pytest.approx([1.5, 3.5, 7], abs=1e-3)
    made = plain((1, 3, 3), hidden=hidden).resample(grid_of(range(9), 1, 3, 3), 4)
    assert made.x.flatten().tolist() == pytest.approx([2, 3.5, 6.5, 8], abs=1e-3)


def test_kernels_that_are_the_mean_in_time_give_four_equal_frames_back():
    network = moved(Network(4, 4, 4, ()))
    with torch.no_grad():
        network.frame.zero_()
        for halving in network.halvings:
            for part in (halving.time.parts["out"], halving.space.out, halving.conv):
                part.weight.zero_()
                part.bias.zero_()
            halving.conv.weight[:, :, :, 1, 1] = torch.eye(4).unsqueeze(-1) / 3
    frame = torch.randn(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(network.synthesized(frame.expand(-1, 4, -1, -1, -1), 2), frame, atol=1e-6)
    assert torch.allclose(network.synthesized(frame, 2), frame, atol=1e-6)  # a picture is a film of itself


def test_a_convolution_sees_the_first_frame_twice_and_the_border_again():
    halving, x = Halving(1, 4), torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1, 1).expand(-1, -1, 2, 2, -1)
    with torch.no_grad():
        halving.conv.weight.zero_()
        halving.conv.weight[0, 0, 0, 0, 0] = 1  # the frame before, the place above and to the left
    assert halving(x).flatten().tolist() == [1] * 4 + [2] * 4
    place = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2, 1).expand(-1, 4, -1, -1, -1)
    assert halving(place)[0, 0].flatten().tolist() == [1, 1, 1, 1]
    with torch.no_grad():
        halving.conv.weight.zero_()
        halving.conv.weight[0, 0, 2, 2, 2] = 1
    assert halving(x).flatten().tolist() == [2] * 4 + [4] * 4
    assert halving(place)[0, 0].flatten().tolist() == [4, 4, 4, 4]


def test_attention_in_time_knows_how_far_apart_frames_are():
    part = InTime(4, 3)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(part(x), torch.zeros_like(x))  # at first
    moved(part)
    y = part.norm(x.mT).mT
    q, k, v = (part.parts[name](y) for name in "qkv")
    for i in range(3):
        logits = torch.stack([(q[:, i] * (k[:, j] + part.tables["k"][j - i + 2])).sum(-1) / 2 for j in range(3)], -1)
        weight = logits.softmax(-1)
        read = sum(weight[:, j, None] * (v[:, j] + part.tables["v"][j - i + 2]) for j in range(3))
        assert torch.allclose(part(x)[:, i], part.parts["out"](read), atol=1e-5)


def test_groups_know_nothing_of_each_other_and_frames_of_one_are_told_apart(tiny):
    method = on_trial(make("projector", "video_xl_pro"), (8, 2, 2))
    moved(method.network)
    tokens = tiny(n=32, grid=(8, 2, 2))
    x = tokens.x.clone()
    x[:, 16:] *= -1
    before, after = method.resample(tokens, 2).x, method.resample(tiny(n=32, grid=(8, 2, 2), x=x), 2).x
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-5) and not torch.allclose(before, after, atol=1e-2)
    swapped = tokens.x.view(1, 8, 4, 8)[:, [1, 0, 2, 3, 4, 5, 6, 7]].reshape(1, 32, 8)
    after = method.resample(tiny(n=32, grid=(8, 2, 2), x=swapped), 2).x
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-3)


def test_it_works_at_a_quarter_of_the_width_unless_told_otherwise():
    for width, hidden in ((96, 24), (1024, 256), (5120, 256), (2, 1)):
        with torch.device("meta"):
            network = make("projector", "video_xl_pro").build(Widths(width, 8, 0, 4, 4, (4, 2, 2)))
        assert network.frame.shape == (4, hidden) and network.down.out_features == hidden
    published = make("projector", "video_xl_pro", hidden=96).build(Widths(96, 8, 0, 4, 4, (4, 2, 2)))
    assert published.up is None and published.halvings[0].norm.num_groups == 32


@pytest.mark.parametrize("options", [{"halvings": ()}, {"halvings": (1, 3)}, {"hidden": 0}])
def test_a_hyperparameter_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match=f"video_xl_pro: {next(iter(options))}"):
        make("projector", "video_xl_pro", **options)

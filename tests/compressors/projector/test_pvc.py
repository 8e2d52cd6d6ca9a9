"""PVC: what a frame sees, what time does, and how many tokens are left."""

import pytest
import torch

from foveate.compressors.learned import Widths, on_trial, untrained
from foveate.compressors.projector.pvc import Looking, waves
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

GRID = (5, 4, 4)


def moved(module, seed=0, leave=()):
    """Weights far from their start, but those whose name has one of `leave`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not any(part in name for part in leave):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def ready(**options):
    method = on_trial(make("projector", "pvc", **options), GRID)
    moved(method.network)
    return method


def film(tiny, still=False):
    x = torch.randn(1, 1 if still else 5, 16, 8, generator=torch.Generator().manual_seed(3))
    return tiny(n=80, grid=GRID, x=x.expand(1, 5, 16, 8).reshape(1, 80, 8))


def test_times_go_from_0_to_1():
    assert torch.equal(waves(5, torch.device("cpu"))[[0]], waves(1, torch.device("cpu")))
    t = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    fastest = waves(5, torch.device("cpu"))[:, 0]
    assert torch.allclose(fastest, (1000 * t).sin(), atol=1e-4)


def test_at_first_it_is_the_projector_on_the_mean_of_each_block(tiny):
    one, hundred = torch.eye(8), torch.full((8,), 100.0)
    method = untrained(make("projector", "pvc"), Widths(8, 8, 0, 4, 4, GRID), ((one, hundred), (one, -hundred)))
    tokens = film(tiny)
    blocks = tokens.x.view(5, 2, 2, 2, 2, 8).mean(dim=(2, 4)).view(1, 20, 8)
    made = method.resample(tokens, 20)
    assert torch.allclose(made.x, blocks, atol=1e-4) and made.grid_out == (5, 2, 2)
    x = torch.randn(2, 3, 5, 8)
    assert torch.equal(method.network.looking[0](x, torch.randn(2, 5, 8)), x)


def test_a_frame_never_depends_on_later_ones(tiny):
    method, tokens = ready(), film(tiny)
    other = tokens.x.clone()
    other[:, 3 * 16 :] += 1
    before, after = method.resample(tokens, 20).x, method.resample(tiny(n=80, grid=GRID, x=other), 20).x
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not torch.allclose(before[:, 12:16], after[:, 12:16], atol=1e-2)
    first = tokens.x.clone()
    first[:, :16] *= -1
    assert not torch.allclose(method.resample(tiny(n=80, grid=GRID, x=first), 20).x[:, 16:], before[:, 16:], atol=1e-2)


def test_frames_of_a_still_clip_differ_by_their_time_alone(tiny):
    method, tokens = ready(), film(tiny, still=True)
    frames = method.resample(tokens, 20).x.view(5, 4, 8)
    assert not torch.allclose(frames[0], frames[4], atol=1e-2)
    with torch.no_grad():
        for part in (*method.network.scaled.values(), *(block.time for block in method.network.looking)):
            part.weight.zero_()
    frames = method.resample(tokens, 20).x.view(5, 4, 8)
    assert torch.allclose(frames, frames[:1].expand_as(frames), atol=1e-5)


def test_attention_is_a_softmax_over_this_frame_and_earlier_ones():
    block = moved(Looking(4))
    x, time = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5)), torch.zeros(1, 3, 4)
    gamma, beta, alpha = block.time(time)[0].chunk(3, dim=-1)
    y = block.norm(x) * (1 + gamma) + beta
    part = block.attention
    q, k, v = part.q(y), part.k(y), part.v(y)
    for frame in range(3):
        weight = ((q[:, frame : frame + 1] * k[:, : frame + 1]).sum(-1) / 2).softmax(-1)
        wanted = x[:, frame] + alpha[frame] * part.out((weight[..., None] * v[:, : frame + 1]).sum(1))
        assert torch.allclose(block(x[None], time)[0, :, frame], wanted, atol=1e-5)


def test_sixteen_frames_become_1024_tokens_of_64_each():
    assert list(make("projector", "pvc").reachable((16, 32, 32))) == [1024, 4096]
    assert list(make("projector", "pvc", sides=(2, 4, 8)).reachable((1, 32, 32))) == [16, 64, 256]


@pytest.mark.parametrize("options", [{"sides": ()}, {"sides": (0,)}, {"depth": -1}])
def test_a_hyperparameter_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match="pvc: sides"):
        make("projector", "pvc", **options)

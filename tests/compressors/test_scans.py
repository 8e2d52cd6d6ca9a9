"""Scans in chunks against one that goes token by token."""

import pytest
import torch
from torch.nn.functional import softplus

from foveate.compressors.scans import scanned

pytestmark = pytest.mark.fast


def slow(step, speed, into, out, x):
    """One token after the other."""
    b, length, width = x.shape
    h, y = torch.zeros(b, width, speed.shape[1]), []
    for t in range(length):
        h = torch.exp(step[:, t, :, None] * speed) * h + (step[:, t] * x[:, t])[..., None] * into[:, t, None]
        y.append((h * out[:, t, None]).sum(-1))
    return torch.stack(y, dim=1)


def drawn(length, pace, width=3, state=5, batch=2):
    generator = torch.Generator().manual_seed(length)
    rand = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    step = softplus(rand(batch, length, width)) * pace
    return step, -rand(width, state).exp(), rand(batch, length, state), rand(batch, length, state), rand(*step.shape)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 37, 288])
@pytest.mark.parametrize("pace", [0.01, 1.0, 200.0])
def test_the_scan_in_chunks_is_the_one_token_by_token(length, pace):
    given = drawn(length, pace)
    assert torch.allclose(scanned(*given), slow(*given), rtol=1e-4, atol=1e-4 * max(1, pace))


def test_channels_in_pieces_and_gradients_are_those_of_the_slow_one_too(monkeypatch):
    given = [value.requires_grad_() for value in drawn(23, 1.0)]
    wanted = torch.autograd.grad(slow(*given).square().sum(), given)
    found = torch.autograd.grad(scanned(*given).square().sum(), given)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(found, wanted, strict=True))
    whole = scanned(*given)
    monkeypatch.setattr("foveate.compressors.scans.PIECE", 2 * 23 * 5)
    assert torch.allclose(scanned(*given), whole, atol=1e-6)


def test_a_scan_by_hand():
    step, x = torch.tensor([[[1.0], [2.0], [0.0]]]), torch.tensor([[[1.0], [1.0], [9.0]]])
    ones = torch.ones(1, 3, 1)
    y = scanned(step, -torch.tensor([[2.0]]).log(), ones, ones, x)
    assert y.flatten().tolist() == pytest.approx([1, 1 / 4 + 2, 1 / 4 + 2])  # halved at each unit of a step

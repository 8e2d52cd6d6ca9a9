"""STC connector: the sizes it makes, and what it computes at first."""

import pytest
import torch

from foveate.compressors.learned import Widths, on_trial, untrained
from foveate.compressors.projector.stc_connector import cells
from foveate.compressors.registry import make
from foveate.compressors.trial import random_tokens

pytestmark = pytest.mark.fast


def plain(grid, features=1, **options):
    """A connector whose projector hands features on as they are: GELU of x + 100 is x + 100."""
    one, hundred = torch.eye(features), torch.full((features,), 100.0)
    widths = Widths(features, features, 0, 4, 4, grid)
    return untrained(make("projector", "stc_connector", **options), widths, ((one, hundred), (one, -hundred)))


@pytest.mark.parametrize(
    ("grid", "bare", "padded"),
    [
        ((8, 24, 24), (4, 12, 12), (5, 13, 13)),  # 576 and 845 tokens
        ((16, 24, 24), (8, 12, 12), (9, 13, 13)),  # 1152 and 1521
        ((16, 27, 27), (8, 13, 13), (9, 14, 14)),  # 1352 and 1764
        ((8, 16, 16), (4, 8, 8), (5, 9, 9)),
        ((8, 12, 20), (4, 6, 10), (5, 7, 11)),
        ((1, 24, 24), (1, 12, 12), (1, 13, 13)),  # a single frame is repeated
    ],
)
def test_the_sizes_that_a_stride_of_two_makes(grid, bare, padded):
    assert cells(grid, (2, 2, 2), 0) == bare and cells(grid, (2, 2, 2), 1) == padded


def test_the_published_strides_keep_a_quarter_a_half_an_eighth_and_a_sixteenth():
    n = 8 * 24 * 24
    assert make("projector", "stc_connector").reachable((8, 24, 24)) == [n // 16, n // 8, n // 4, n // 2]
    assert make("projector", "stc_connector", padding=1, strides=((2, 2, 2),)).reachable((8, 24, 24)) == [845]


def test_at_first_it_is_the_mean_of_each_block(tiny):
    tokens = tiny(n=4 * 4 * 6, grid=(4, 4, 6), dim=2, batch=2)
    made = plain((4, 4, 6), 2).resample(tokens, 2 * 2 * 3)
    blocks = tokens.x.view(2, 2, 2, 2, 2, 3, 2, 2).mean(dim=(2, 4, 6))
    assert torch.allclose(made.x, blocks.flatten(1, 3), atol=1e-4) and made.grid_out == (2, 2, 3)


def test_a_constant_clip_stays_constant(grid_of):
    made = plain((4, 2, 2)).resample(grid_of([3.0] * 16, 4, 2, 2), 2)
    assert made.x.flatten().tolist() == pytest.approx([3, 3], abs=1e-3)


def test_padding_makes_tokens_of_zeros_at_the_border(grid_of):
    made = plain((2, 2, 2), padding=1, strides=((2, 2, 2),), depth=0)
    assert made.reachable((2, 2, 2)) == []  # as many as there were
    made = plain((4, 4, 4), padding=1, strides=((2, 2, 2),), depth=0).resample(grid_of([8.0] * 64, 4, 4, 4), 27)
    assert made.x.view(3, 3, 3)[0, 0].tolist() == pytest.approx([1, 2, 1], abs=1e-3)
    assert made.x.view(3, 3, 3)[1, 1].tolist() == pytest.approx([4, 8, 4], abs=1e-3)


def test_the_order_of_two_frames_matters_only_where_their_kernels_differ():
    method, grid = on_trial(make("projector", "stc_connector"), (4, 2, 2)), (4, 2, 2)
    tokens = random_tokens(n=16, grid=grid)
    swapped = random_tokens(n=16, grid=grid, x=tokens.x.view(1, 4, 4, 8)[:, [1, 0, 3, 2]].reshape(1, 16, 8))
    assert torch.allclose(method.resample(tokens, 2).x, method.resample(swapped, 2).x, atol=1e-5)
    with torch.no_grad():
        method.network.samplers["2x2x2"].weight[:, :, 0] *= 2
    assert not torch.allclose(method.resample(tokens, 2).x, method.resample(swapped, 2).x, atol=1e-2)


def test_as_published_blocks_are_as_wide_as_the_decoder_and_close_with_silu():
    published = make("projector", "stc_connector", published=True, depth=1, strides=((2, 2, 2),))
    network = published.build(Widths(6, 10, 0, 4, 4, (2, 2, 2)))
    assert network.samplers["2x2x2"].weight.shape == (10, 10, 2, 2, 2) and network.published
    assert len(network.before[0].shortcut) == 2 and len(network.behind[0].shortcut) == 0
    assert network.before[0].squeeze.out_features == round(6 / 4)


@pytest.mark.parametrize("options", [{"strides": ()}, {"padding": 2}, {"depth": -1}])
def test_a_hyperparameter_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match="stc_connector: "):
        make("projector", "stc_connector", **options)

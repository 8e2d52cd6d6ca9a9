import pytest
import torch

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal
from foveate.plans.named import load_plan

pytestmark = pytest.mark.fast


def test_ranks_by_the_layer_before_which_tokens_go(tiny):
    heads = torch.tensor([[[0.1, 0.4, 0.1, 0.2], [0.3, 0.1, 0.1, 0.3]]])
    method = make("prefill", "vscan")
    assert method.sites(96, 32, 32) == [(16, 32)] and method.signals(32) == {Signal("last_query", 16)}
    assert method.reduce(tiny(n=4, grid=(1, 2, 2), last_query=heads), 2).anchor.tolist() == [[1, 3]]


def test_without_rotation_it_reads_the_other_row(tiny):
    method = make("prefill", "vscan", layer=(14, 28), rotated=False)
    assert method.signals(28) == {Signal("unrotated_query", 14)}
    tokens = tiny(n=3, grid=(1, 1, 3), unrotated_query=torch.tensor([[[0.1, 0.2, 0.7]]]))
    assert method.reduce(tokens, 1).anchor.tolist() == [[2]]


def test_the_named_plan_has_the_published_counts_of_llava():
    plan = load_plan("vscan")
    first = round(576 * plan["projector"].keep)
    second = round(first * plan["prefill"].keep)
    assert (first, second) == (96, 32)
    assert (16 * first + 16 * second) / 32 == 64  # the average over the layers


def test_a_layer_outside_the_model_is_refused():
    with pytest.raises(ValueError, match=r"vscan: layer 32 is outside 1\.\.31"):
        make("prefill", "vscan", layer=(32, 32))

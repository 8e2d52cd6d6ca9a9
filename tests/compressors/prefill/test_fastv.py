import pytest
import torch

from foveate.compressors.base import apply_position
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def test_follows_the_last_query(tiny):
    tokens = tiny(n=3, grid=(1, 1, 3), last_query=torch.tensor([[[0.7, 0.1, 0.2]]]))
    assert make("prefill", "fastv").reduce(tokens, count=2).anchor.tolist() == [[0, 2]]


def test_heads_are_averaged_and_places_kept(tiny):
    heads = torch.tensor([[[0.05, 0.40, 0.10, 0.10], [0.05, 0.20, 0.10, 0.30]]])  # means .05 .30 .10 .20
    tokens = tiny(n=4, grid=(1, 2, 2), last_query=heads)
    reduction = make("prefill", "fastv").reduce(tokens, 2)
    assert apply_position(reduction, tokens.position + 1).tolist() == [[2, 4]]  # image at 1 .. 4 of the prompt


@pytest.mark.parametrize(("depth", "layer"), [(32, 2), (40, 3), (28, 2), (8, 1), (4, 1)])
def test_reads_the_layer_before_the_one_where_tokens_go(depth, layer):
    method = make("prefill", "fastv")
    assert method.sites(576, 144, depth) == [(layer, 144)]
    assert method.signals(depth) == {Signal("last_query", layer - 1)}


@pytest.mark.parametrize("layer", [(0, 32), (32, 32), (-1, 32)])
def test_a_layer_outside_the_model_is_refused(layer):
    with pytest.raises(ValueError, match=rf"fastv: layer {layer[0]} is outside 1\.\.31"):
        make("prefill", "fastv", layer=layer)


def test_close_scores_in_bfloat16_are_ranked_in_float32(tiny):
    heads = torch.tensor([[[0.25, 0.2500, 0.25], [0.25, 0.2520, 0.25], [0.25, 0.25, 0.2510]]]).bfloat16()
    tokens = tiny(n=3, grid=(1, 1, 3), last_query=heads, dtype=torch.bfloat16)
    wanted = heads.double().mean(1)[0].argsort(descending=True, stable=True)[:1].tolist()
    assert make("prefill", "fastv").reduce(tokens, 1).anchor.tolist() == [wanted]

import math

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def on_circle(*degrees):
    angle = torch.tensor([float(d) for d in degrees]) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[None]


def test_the_norm_lifts_a_token_that_attention_alone_would_rank_third(tiny):
    # queries (1,0) (0,1) (1,1) (0,0) have mean (.5,.5); keys (2,0) (0,1) (1,1) (-1,0) with scale 1 / sqrt(2)
    mean, keys = torch.tensor([0.5, 0.5]), torch.tensor([[2.0, 0], [0, 1], [1, 1], [-1, 0]])
    attention = (keys @ mean / math.sqrt(2)).softmax(-1)
    assert attention.tolist() == pytest.approx([0.328, 0.230, 0.328, 0.114], abs=1e-3)
    norms = torch.tensor([1.0, 2, 1, 3])
    assert (attention * norms).tolist() == pytest.approx([0.328, 0.461, 0.328, 0.341], abs=1e-3)
    x = torch.zeros(1, 4, 2)
    x[0, :, 0] = norms
    tokens = tiny(n=4, grid=(1, 2, 2), x=x, mean_query=attention.view(1, 1, 4), wide_keys=on_circle(0, 90, 180, 270))
    one = make("prefill", "pact", share=0.25, cutoff=0.0)
    assert one.reduce(tokens, 4).anchor.tolist() == [[1]]  # 0.25 of 4 survive
    two = make("prefill", "pact", share=0.5, cutoff=0.0)
    assert two.reduce(tokens, 4).anchor.tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("cutoff", "anchors", "members"), [(0.05, [0, 2, 3], [2, 1, 2]), (0.20, [2, 3], [3, 2]), (2.5, [2], [5])]
)
def test_all_survive_and_join_the_dense_centres(tiny, cutoff, anchors, members):
    keys = on_circle(0, 10, 20, 60, 65)
    tokens = tiny(n=5, grid=(1, 1, 5), wide_keys=keys)  # 10 degrees are as near to 0 as to 20: the lower index
    reduction = make("prefill", "pact", share=1.0, cutoff=cutoff, alpha=1.0).reduce(tokens, 5)
    assert reduction.anchor.tolist() == [anchors]
    size = apply_size(reduction, tokens.size)[0]
    assert size.tolist() == members and size.sum() == (reduction.into >= 0).sum()
    out = apply(reduction, tokens.x)[0]
    last = tokens.x[0, 3:].mean(0) if cutoff < 2 else tokens.x[0].mean(0)
    assert torch.allclose(out[-1], last, atol=1e-6)


def test_a_pruned_token_comes_back_into_a_centre_that_is_near_enough(tiny):
    keys = on_circle(0, 1, 90, 140)
    attention = torch.tensor([[[0.5, 0.0, 0.4, 0.0]]])
    tokens = tiny(n=4, grid=(1, 2, 2), x=torch.ones(1, 4, 3), wide_keys=keys, mean_query=attention)
    reduction = make("prefill", "pact", share=0.5, cutoff=0.01).reduce(tokens, 4)
    assert reduction.anchor.tolist() == [[0, 2]]
    assert reduction.into[0, :, 0].tolist() == [0, 0, 1, -1]  # 140 degrees is too far from 90
    assert apply_size(reduction, tokens.size).tolist() == [[2, 1]]


@pytest.mark.parametrize("count", [1, 3, 8, 17, 35])
def test_an_asked_number_of_centres_is_met_exactly(tiny, count):
    tokens, method = tiny(n=36, grid=(1, 6, 6), batch=2), make("prefill", "pact")
    reduction = method.reduce(tokens, count)
    assert reduction.anchor.shape == (2, count) and reduction.count is None
    stays = reduction.into.gather(1, reduction.anchor[..., None])[..., 0]
    assert stays.tolist() == [list(range(count))] * 2  # a centre is in its own slot


def test_twins_everywhere_still_give_the_count(tiny):
    tokens = tiny(n=12, wide_keys=torch.ones(1, 12, 6))
    reduction = make("prefill", "pact").reduce(tokens, 5)
    assert reduction.anchor.shape == (1, 5) and apply_size(reduction, tokens.size).sum() == 12


def test_with_all_surviving_and_no_reach_nothing_changes(tiny):
    tokens = tiny(n=12)
    reduction = make("prefill", "pact", share=1.0, cutoff=0.0).reduce(tokens, 12)
    assert torch.equal(apply(reduction, tokens.x), tokens.x)
    assert apply_size(reduction, tokens.size).tolist() == [[1] * 12]


def test_acts_before_its_layer_on_what_that_layer_would_read():
    method = make("prefill", "pact")
    assert method.sites(729, 200, 28) == [(4, 200)]
    assert method.signals(28) == {Signal("mean_query", 4), Signal("wide_keys", 4)}
    assert method.proportional and not method.text_guided
    assert method.survivors(100, 30) == 54 and make("prefill", "pact", share=0.55).survivors(729, 10) == 400


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": (28, 28)}, r"layer 28 is outside 1\.\.27"),
        ({"share": 0.0}, r"share 0.0 is outside \(0, 1\]"),
        ({"cutoff": -0.1}, "cutoff -0.1 or alpha 1.5 is below 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"pact: {message}"):
        make("prefill", "pact", **wrong)

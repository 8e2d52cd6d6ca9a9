import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, apply_position, apply_size, in_order
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


@pytest.fixture
def example(tiny):
    """CLS and six patches; at a count of five, three are dominant (CLS among them) and two contextual."""
    attention = torch.tensor([0, 0.30, 0.05, 0.10, 0.25, 0.20, 0.10])
    keys = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [1, 0], [0.2, 1], [1, 0.3]])
    hidden = torch.tensor([50.0, 10, 2, 4, 8, 6, 12])
    return tiny(
        n=7,
        grid=(1, 2, 3),
        cls=True,
        x=hidden.view(1, 7, 1),
        keys=keys.unsqueeze(0),
        cls_attention=attention.view(1, 1, 7),
    )


@pytest.mark.parametrize(("merge", "last"), [("sum", 14), ("mean", 22 / 3)])
def test_targets_collect_their_like(example, merge, last):
    reduction = make("outside", "visionzip", merge=merge, dominant=0.6).reduce(example, 5)
    assert reduction.anchor.tolist() == [[0, 1, 4, 2, 5]]
    assert apply(reduction, example.x).flatten().tolist() == pytest.approx([50, 10, 8, 2, last])
    assert apply_size(reduction, example.size).tolist() == [[1, 1, 1, 1, 3]]
    assert apply_position(in_order(reduction), example.position).tolist() == [[-1, 0, 1, 3, 4]]


@pytest.mark.parametrize(
    ("count", "split"), [(64, (54, 10)), (128, (108, 20)), (192, (162, 30)), (1, (1, 0)), (2, (2, 0))]
)
def test_published_splits(count, split):
    assert make("outside", "visionzip").split(count) == split


def test_a_count_of_one_is_cls(example):
    assert make("outside", "visionzip").reduce(example, 1).anchor.tolist() == [[0]]


def test_all_tokens_stay_as_they_are_when_all_are_asked_for(example):
    reduction = make("outside", "visionzip").reduce(example, 7)
    assert torch.equal(apply(in_order(reduction), example.x), example.x)


def test_without_cls_no_token_is_protected(example):
    patches = slice(1, None)
    signals = {
        "cls_attention": example.signals["cls_attention"][..., patches],
        "keys": example.signals["keys"][:, patches],
    }
    tokens = dataclasses.replace(
        example,
        x=example.x[:, patches],
        size=example.size[:, patches],
        position=example.position[:, patches],
        signals=signals,
    )
    assert make("outside", "visionzip").reduce(tokens, 2).anchor.tolist() == [[0, 3]]


def test_the_mean_conserves_the_sum_and_every_token_goes_somewhere(tiny):
    tokens = tiny(n=40, grid=(1, 3, 13), cls=True, batch=2)
    reduction = make("outside", "visionzip", merge="mean", dominant=0.5).reduce(tokens, 10)
    size = apply_size(reduction, tokens.size)
    total = (size.unsqueeze(-1) * apply(reduction, tokens.x)).sum(1)
    assert (reduction.into >= 0).all() and torch.allclose(total, tokens.x.sum(1), atol=1e-4)


def test_heads_are_summed(tiny):
    attention = torch.tensor([[[0, 0.6, 0.1, 0.3], [0, 0.1, 0.5, 0.4]]])
    tokens = tiny(n=4, grid=(1, 1, 3), cls=True, cls_attention=attention)
    assert make("outside", "visionzip", dominant=1.0).reduce(tokens, 3).anchor.tolist() == [[0, 1, 3]]


def test_wrong_hyperparameters_are_named():
    with pytest.raises(ValueError, match="merge 'median' is neither"):
        make("outside", "visionzip", merge="median")
    with pytest.raises(ValueError, match=r"dominant 0 is outside \(0, 1\]"):
        make("outside", "visionzip", dominant=0)

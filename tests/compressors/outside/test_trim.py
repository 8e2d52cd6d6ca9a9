import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.outside.trim import outliers
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

SIMILARITY = torch.tensor([0.25, 0.26, 0.24, 0.25, 0.27, 0.26, 0.25, 0.24, 0.02, 0.26, 0.25, 0.05])


@pytest.fixture
def example(tiny):
    return tiny(n=12, text_similarity=SIMILARITY.unsqueeze(0))


def test_outliers_choose_how_many_stay(example):
    p = (-SIMILARITY).softmax(-1)
    low, high = torch.quantile(p, torch.tensor([0.25, 0.75])).tolist()
    assert [low, high, high + 1.5 * (high - low)] == pytest.approx([0.0795, 0.0811, 0.0835], abs=6e-5)
    assert [p[8].item(), p[11].item()] == pytest.approx([0.1011, 0.0981], abs=6e-5)
    assert outliers(p.unsqueeze(0)).tolist() == [2]
    reduction = make("outside", "trim", automatic=True).reduce(example, 12)
    assert reduction.anchor.tolist() == [[8, 11, -1]] and reduction.count.tolist() == [3]
    others = [i for i in range(12) if i not in (8, 11)]
    wanted = torch.cat([example.x[:, [8, 11]], example.x[:, others].mean(1, keepdim=True)], dim=1)
    assert torch.allclose(apply(reduction, example.x), wanted, atol=1e-6)


def test_the_count_is_a_ceiling_of_the_automatic_choice(example):
    reduction = make("outside", "trim", automatic=True).reduce(example, 2)
    assert reduction.anchor.tolist() == [[8, -1]] and reduction.count.tolist() == [2]


def test_rows_choose_different_numbers_and_quartiles_are_their_own(tiny):
    calm = torch.full((12,), 0.25)
    tokens = tiny(n=12, batch=2, text_similarity=torch.stack([calm, SIMILARITY]))
    reduction = make("outside", "trim", automatic=True).reduce(tokens, 12)
    assert reduction.anchor.tolist() == [[-1, -1, -1], [8, 11, -1]] and reduction.count.tolist() == [1, 3]
    assert torch.allclose(apply(reduction, tokens.x)[0, 0], tokens.x[0].mean(0), atol=1e-6)


@pytest.mark.parametrize("automatic", [False, True])
def test_a_constant_added_to_all_similarities_changes_nothing(tiny, example, automatic):
    moved = tiny(n=12, text_similarity=SIMILARITY.unsqueeze(0) - 0.5)
    one, other = (make("outside", "trim", automatic=automatic).reduce(tokens, 4) for tokens in (example, moved))
    assert torch.equal(one.anchor, other.anchor) and torch.equal(one.into, other.into)


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_the_count_is_met_with_the_mean_as_its_last_and_nothing_is_lost(tiny, count):
    tokens = tiny(n=12, batch=3)
    reduction = make("outside", "trim").reduce(tokens, count)
    assert reduction.anchor.shape == (3, count) and reduction.count is None
    assert (reduction.anchor[:, :-1] >= 0).all() and (reduction.anchor[:, -1] == -1).all()
    made = apply(reduction, tokens.x)
    total = made[:, :-1].sum(1) + made[:, -1] * (12 - count + 1)
    assert torch.allclose(total, tokens.x.sum(1), atol=1e-5)
    assert apply_size(reduction, tokens.size).sum(1).tolist() == [12, 12, 12]


def test_all_tokens_stay_as_they_are_when_all_are_asked_for(example):
    reduction = make("outside", "trim").reduce(example, 12)
    assert reduction.into is None and torch.equal(apply(reduction, example.x), example.x)


def test_the_two_signs_pick_complementary_halves(tiny):
    tokens = tiny(n=12, batch=2)
    unlike, like = (make("outside", "trim", sign=sign).reduce(tokens, 7).anchor[:, :-1] for sign in (-1, 1))
    assert torch.equal(torch.cat([unlike, like], 1).sort().values, torch.arange(12).expand(2, -1))
    assert tokens.signals["text_similarity"].gather(1, unlike).max() < tokens.signals["text_similarity"].max()


def test_another_sign_is_refused():
    with pytest.raises(ValueError, match="trim: sign 0 is neither 1 nor -1"):
        make("outside", "trim", sign=0)

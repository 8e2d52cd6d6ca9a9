import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, apply_size, in_order
from foveate.compressors.outside.par import PAR
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def planted(tiny, aligned, n=64, grid=(1, 8, 8), phrases=None):
    """Two clusters of twins: the tokens in `aligned` look alike and are near to the question, all others are not."""
    x = torch.tensor([0.0, 1.0]).expand(n, 2).clone()
    x[aligned] = torch.tensor([1.0, 0.0])
    similar = torch.full((1, 3, n), -0.5)
    similar[:, :, aligned] = 0.5
    if phrases is not None:
        similar[:, [kind for kind in range(3) if kind not in phrases]] = -torch.inf
    return tiny(n=n, grid=grid, x=x.unsqueeze(0), phrase_similarity=similar)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_of_two_clusters_only_the_one_near_the_question_remains(tiny, size):
    tokens = planted(tiny, list(range(size)))
    reduction = make("outside", "par", route="drop").reduce(tokens, size)
    assert reduction.into is None and reduction.anchor.tolist() == [list(range(size))]


def test_members_are_averaged_into_the_representative_that_they_are_most_like(tiny):
    x = torch.tensor([0.0, -1.0]).repeat(24, 1)
    x[:3] = torch.tensor(
        [[1.0, 0], [0.96, 0.28], [0.7, 0.714]]
    )  # cosines .96 of 0 and 1, .87 of 1 and 2, .7 of 0 and 2
    similar = torch.full((1, 3, 24), -0.5)
    similar[:, :, :3] = torch.tensor([0.4, 0.9, 0.5])
    tokens = tiny(n=24, grid=(1, 1, 24), x=x.unsqueeze(0), phrase_similarity=similar)
    tokens = dataclasses.replace(tokens, size=torch.ones(1, 24).index_fill(1, torch.tensor([1]), 3))
    reduction = make("outside", "par").reduce(tokens, 2)
    assert reduction.anchor.tolist() == [[1, 2]] and apply_size(reduction, tokens.size).tolist() == [[4, 1]]
    assert torch.allclose(apply(reduction, tokens.x), torch.stack([(x[0] + 3 * x[1]) / 4, x[2]]).unsqueeze(0))
    alone = make("outside", "par", route="drop").reduce(tokens, 2)
    assert torch.equal(apply(alone, tokens.x), tokens.x[:, 1:3])


def test_one_slot_is_the_most_relevant_token_with_its_cluster(tiny):
    tokens = planted(tiny, [9, 10, 17, 18])
    tokens.signals["phrase_similarity"][0, :, 17] = 0.9
    reduction = make("outside", "par").reduce(tokens, 1)
    assert reduction.anchor.tolist() == [[17]]
    assert apply(reduction, tokens.x).tolist() == [[[1, 0]]] and apply_size(reduction, tokens.size).tolist() == [[4]]


@pytest.mark.parametrize("route", ["merge", "drop"])
@pytest.mark.parametrize("background", [False, True])
def test_the_count_is_met(tiny, route, background):
    tokens = tiny(n=35, grid=(1, 5, 7), dim=2, batch=3)
    for count in (1, 2, 7, 20, 34, 35):
        reduction = make("outside", "par", route=route, keep_background=background).reduce(tokens, count)
        used = (reduction.anchor >= 0).sum(-1) if reduction.into is None else None
        made = apply(reduction, tokens.x)
        assert made.isfinite().all() and reduction.anchor.shape == (3, count)
        assert used is None or used.tolist() == [count] * 3


@pytest.mark.parametrize("route", ["merge", "drop"])
def test_the_background_is_the_mean_of_what_was_not_retrieved(tiny, route):
    tokens = planted(tiny, [0, 1, 2, 3, 8, 9, 10, 11])  # eight tokens fill the 3 * 2 that two slots retrieve
    x = tokens.x.clone()
    x[0, 60] = torch.tensor([3.0, 1.0])
    tokens = dataclasses.replace(tokens, x=x)
    reduction = make("outside", "par", route=route, keep_background=True).reduce(tokens, 2)
    assert reduction.anchor.tolist() == [[0, -1]]
    assert torch.allclose(apply(reduction, x), torch.tensor([[[1, 0], [3 / 56, 1]]]))
    assert apply_size(reduction, tokens.size).tolist() == [[8 if route == "merge" else 1, 56]]


def test_doubled_weights_change_nothing(tiny):
    tokens = tiny(n=35, grid=(1, 5, 7), dim=3, batch=2)
    for count in (1, 9, 30):
        one = make("outside", "par").reduce(tokens, count)
        other = make("outside", "par", weights=(2.0, 1.4, 1.0)).reduce(tokens, count)
        assert torch.equal(one.anchor, other.anchor) and torch.equal(one.into, other.into)


def test_quotas_fit_their_clusters_and_sum_to_the_count(tiny):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(40).div(5, rounding_mode="floor").mul(5).expand(6, -1)
    members = torch.zeros(6, 40, dtype=torch.int64)
    members[:, ::5] = 5
    g = torch.randn(6, 40, generator=generator)
    for count in (1, 2, 13, 39, 40):
        quota, retrieved = make("outside", "par").quotas(g, torch.ones(6, 1).bool(), label, members, count)
        assert quota.sum(-1).tolist() == [count] * 6 and (quota <= members).all() and not quota[~retrieved].any()


def test_a_kind_that_the_question_has_not_is_left_out(tiny):
    g, known = PAR().relevance(torch.tensor([[[-torch.inf] * 2, [0.2, 0.4], [0.6, 0.2]]]))
    assert known.all() and g[0].tolist() == pytest.approx([1, -1], abs=1e-4)  # .3 and .28


def test_without_a_question_the_largest_clusters_stay(tiny):
    tokens = planted(tiny, [0, 1, 2], n=12, grid=(1, 1, 12), phrases=())
    reduction = make("outside", "par", route="drop").reduce(tokens, 1)
    assert reduction.anchor.tolist() == [[3]]


def test_automatic_quotas_are_square_roots_of_relevant_clusters(tiny):
    tokens = planted(tiny, [9, 10, 17, 18])
    reduction = make("outside", "par", automatic=True).reduce(tokens, 64)
    assert reduction.anchor.tolist() == [[9, 10]]  # ceil(sqrt(4)), equal members by index
    assert make("outside", "par", automatic=True).reduce(tokens, 1).anchor.shape == (1, 1)


def test_all_tokens_stay_as_they_are_when_all_are_asked_for(tiny):
    tokens = tiny(n=35, grid=(1, 5, 7), batch=2)
    assert torch.equal(apply(in_order(make("outside", "par").reduce(tokens, 35)), tokens.x), tokens.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"route": "send"}, "route 'send'"), ({"weights": (1.0, 0.0, 1.0)}, "weights"), ({"temperature": 0.0}, "weights")],
)
def test_wrong_hyperparameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"par: {message}"):
        make("outside", "par", **arguments)

import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.encoder.qg_vtc import QgVtc, shares, taking
from foveate.compressors.learned import Widths, untrained
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

CLIP_L = 23  # blocks that run


def built(depth=CLIP_L, text=8, width=8, **settings):
    return untrained(make("encoder", "qg_vtc", **settings), Widths(width, 8, text, depth, 4, (1, 3, 4)))


@pytest.fixture
def example(tiny):
    """Four tokens of which the question, (1, -1), asks for 1 and 3: layer norm makes (1, -1) or (-1, 1) of each."""
    paid = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.2], [0.5, 0, 0, 0], [0, 0.9, 0, 0.1]]])
    x = torch.tensor([[[1.0, 3], [4, 0], [2, 7], [9, 5]]])
    return tiny(n=4, grid=(1, 1, 4), x=x, attention_map=paid, question=torch.tensor([[1.0, -1]]))


@pytest.fixture
def direct(example):
    """The method with a network that hands the question through; recycling is off."""
    method = built(text=2, width=2)
    method.network.forward = lambda question, site: question
    return method


def test_tokens_left_by_each_site_halve_on_the_way_to_an_eighth():
    assert make("encoder", "qg_vtc").sites(576, 72, CLIP_L) == [(11, 288), (15, 144), (19, 72)]  # with CLS 289, 145, 73


def test_a_shallow_tower_has_fewer_sites_and_each_hands_over_its_own_map():
    method = make("encoder", "qg_vtc")
    assert method.sites(16, 4, 3) == [(1, 8), (2, 4)] and built(depth=3).network.scale.shape == (2,)
    asked = {Signal("question"), Signal("attention_map", 1), Signal("attention_map", 2)}
    assert method.signals(3) == asked and method.signals_at(2, 3) == asked - {Signal("attention_map", 1)}


@pytest.mark.parametrize(("n", "count"), [(576, 575), (576, 574), (12, 10), (100, 97), (7, 1)])
def test_a_site_that_would_remove_nothing_is_a_last_one(n, count):
    blocks = [layer for layer, _ in make("encoder", "qg_vtc").sites(n, count, CLIP_L)]
    assert blocks == [11, 15, 19][: len(blocks)]


def test_without_recycling_the_most_relevant_tokens_stay_as_they_are(direct, example):
    found = direct.relevance(example)[0]
    assert found.tolist() == pytest.approx([-(2**0.5), 2**0.5, -(2**0.5), 2**0.5], abs=1e-4)
    reduction = direct.reduce(example, 2)
    assert reduction.anchor.tolist() == [[1, 3]]
    assert torch.equal(apply(reduction, example.x), example.x[:, [1, 3]])
    assert apply_size(reduction, example.size).tolist() == [[2, 2]]  # the lost ones count half in each


def test_what_is_recycled_is_what_the_kept_tokens_attend_to(direct, example):
    with torch.no_grad():
        direct.network.scale.fill_(0.5)
    after = apply(direct.reduce(example, 2), example.x)[0]
    assert after[0].tolist() == pytest.approx([4 + 0.5 * (0.2 * 1 + 0.3 * 2), 0.5 * (0.2 * 3 + 0.3 * 7)], abs=1e-5)
    assert after[1].tolist() == pytest.approx([9, 5])  # pays the lost ones nothing


def test_shares_of_every_kept_token_add_up_to_one(tiny):
    paid, stays = tiny(n=12, batch=2).signals["attention_map"][:, :5], torch.arange(12).expand(2, -1) < 5
    paid[0, 3] = 0  # pays nothing: takes an equal part of all, nothing in sum
    found = shares(paid, stays)
    assert torch.allclose(found.sum(-1), torch.ones(2, 5), atol=1e-6) and (found[:, :, :5] == 0).all()
    assert torch.allclose(found[0, 3, 5:], torch.full((7,), 1 / 7)) and taking(paid, stays)[0, 3] == 0
    assert torch.allclose(taking(paid, stays)[1, :, 0], paid[1, :, 5:].sum(-1))
    assert (shares(paid, torch.ones(2, 12, dtype=torch.bool)) == 0).all()


def test_a_question_that_says_nothing_keeps_the_lowest_indices(tiny):
    method = built()
    torch.nn.init.zeros_(method.network.down.weight)
    assert method.reduce(tiny(n=12, batch=2), 5).anchor.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_every_part_gets_a_gradient_though_the_choice_has_none(tiny):
    method, tokens = built(), tiny(n=12, batch=2)
    made = apply(method.reduce(tokens, 5), tokens.x)
    (made * torch.randn(made.shape, generator=torch.Generator().manual_seed(9))).sum().backward()
    network = method.network
    for part in (network.up.weight, network.down.weight, network.u, network.scale):
        assert part.grad.abs().sum() > 0
    assert (network.v.grad == 0).all()  # until u has moved


def test_sites_have_corrections_and_scales_of_their_own(tiny):
    method, tokens = built(), tiny(n=12)
    before = [method.relevance(dataclasses.replace(tokens, site=site)) for site in range(3)]
    assert torch.equal(before[0], before[1]) and torch.equal(before[0], before[2])
    with torch.no_grad():
        method.network.u[1] += 0.5
    after = [method.relevance(dataclasses.replace(tokens, site=site)) for site in range(3)]
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    assert not torch.allclose(after[1], before[1])


def test_trained_on_two_objects_it_keeps_the_one_that_is_asked_for(tiny):
    """Tokens 2..5 show one thing, 9..12 another; each question is rewarded for keeping its own."""
    generator = torch.Generator().manual_seed(0)
    things, questions = torch.randn(2, 16, generator=generator), torch.eye(8)[:2]
    x = torch.randn(1, 16, 16, generator=generator).repeat(2, 1, 1)
    x[:, 2:6], x[:, 9:13] = things[0] + 0.1 * x[:, 2:6], things[1] + 0.1 * x[:, 9:13]
    tokens = tiny(n=16, batch=2, grid=(1, 4, 4), x=x, question=questions)
    method = built(width=16)
    first = method.reduce(tokens, 4).anchor
    optimiser = torch.optim.Adam(method.network.parameters(), lr=0.01)
    for _ in range(60):
        kept = apply(method.reduce(tokens, 6), x).mean(dim=1)
        loss = (kept - things).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = method.reduce(tokens, 4).anchor.tolist()
    assert found == [[2, 3, 4, 5], [9, 10, 11, 12]] and found != first.tolist()


@pytest.mark.parametrize("bad", [{"layers": ()}, {"layers": (0, 3)}, {"rank": 0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="qg_vtc: layers"):
        QgVtc(**bad)


def test_there_is_none_without_a_text_tower():
    with pytest.raises(ValueError, match="needs a text tower"):
        built(text=0)

import dataclasses

import pytest
import torch

from foveate.compressors.outside.hiprune import beside
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

MIDDLE = torch.tensor([[0.05, 0.06, 0.04, 0.05, 0.07, 0.30, 0.06, 0.05, 0.08, 0.09, 0.07, 0.08]])
DEEP = torch.tensor([[0.20, 0.02, 0.03, 0.15, 0.01, 0.04, 0.05, 0.10, 0.12, 0.08, 0.14, 0.06]])


def attended(tokens, middle, deep):
    return dataclasses.replace(
        tokens, signals=tokens.signals | {"received_attention.object": middle, "received_attention.deep": deep}
    )


@pytest.fixture
def example(tiny):
    return attended(tiny(n=12, grid=(1, 3, 4)), MIDDLE, DEEP)


def test_an_anchor_its_neighbours_and_registers(example):
    assert make("outside", "hiprune", alpha=0.7).reduce(example, 7).anchor.tolist() == [[0, 1, 3, 4, 5, 6, 9]]


def test_a_corner_anchor_has_two_neighbours_only(example):
    corner = MIDDLE.clone()
    corner[0, 3] = 0.9
    tokens = attended(example, corner, DEEP)
    # anchor 3, buffers 2 and 7; of the rest the deep block likes 0, 10, 8 and 9 most
    assert make("outside", "hiprune", alpha=0.7).reduce(tokens, 7).anchor.tolist() == [[0, 2, 3, 7, 8, 9, 10]]


def test_without_anchors_the_deep_block_decides_alone(example):
    assert make("outside", "hiprune", alpha=0.0).reduce(example, 5).anchor.tolist() == [[0, 3, 7, 8, 10]]
    assert make("outside", "hiprune").reduce(example, 5).anchor.tolist() == [[0, 3, 7, 8, 10]]  # round(.1) anchors


def test_buffers_that_do_not_fit_go_by_the_middle_block(example):
    # round(5 * 3 / 5) = 3 anchors fill the count; one anchor and three of its four buffers fill a count of four
    assert make("outside", "hiprune", alpha=5.0).reduce(example, 3).anchor.tolist() == [[5, 8, 9]]
    assert make("outside", "hiprune", alpha=1.25).reduce(example, 4).anchor.tolist() == [[1, 4, 5, 9]]


@pytest.mark.parametrize(("count", "anchors"), [(192, 4), (128, 3), (64, 1)])
def test_published_numbers_of_anchors(tiny, count, anchors):
    quiet = torch.zeros(1, 576)
    spread = quiet.clone()
    spread[0, [50, 150, 250, 350, 450][:anchors]] = 1  # all inside the grid, far apart: each brings four buffers
    tokens = attended(tiny(n=576, grid=(1, 24, 24)), spread, torch.linspace(1, 0, 576).unsqueeze(0))
    kept = set(make("outside", "hiprune").reduce(tokens, count).anchor[0].tolist())
    around = {50 + 100 * a + d for a in range(anchors) for d in (0, -1, 1, -24, 24)}
    registers = [i for i in range(576) if i not in around][: count - 5 * anchors]
    assert kept == around | set(registers)


def test_neighbours_lie_on_the_grid_and_in_the_same_frame():
    position = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, -1]])  # two frames of 2 x 2 and a token without a place
    only = torch.zeros(1, 9, dtype=torch.bool)
    assert beside(only.index_fill(1, torch.tensor([3]), True), position, (2, 2, 2))[0].nonzero().tolist() == [[1], [2]]
    assert not beside(only.index_fill(1, torch.tensor([8]), True), position, (2, 2, 2)).any()


def test_neighbours_of_a_thinned_grid_are_those_that_are_left():
    position = torch.tensor([[0, 4, 5, 9]])  # of a 3 x 4 grid
    anchor = torch.tensor([[False, False, True, False]])
    assert beside(anchor, position, (1, 3, 4)).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize(("depth", "block"), [(24, 8), (23, 8), (6, 1), (4, 1)])
def test_reads_a_middle_block_and_the_one_that_feeds_the_projector(depth, block):
    wanted = {Signal("received_attention", block, "object"), Signal("received_attention", -1, "deep")}
    assert make("outside", "hiprune").signals(depth) == wanted


def test_the_question_chooses_some_of_the_rest(example):
    similar = torch.tensor([[0.9, 0.1, 0.8, 0.1, 0.1, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2]])
    tokens = dataclasses.replace(example, signals=example.signals | {"text_similarity": similar})
    # round(.3 * 7) = 2 places: HiPrune keeps 5 and its neighbours 4, 6, 9, 1; 0 and 2 are most similar of the others
    chosen = make("outside", "hiprune_plus", alpha=1.0, beta=0.3).reduce(tokens, 7)
    assert chosen.anchor.tolist() == [[0, 1, 2, 4, 5, 6, 9]]
    plain = make("outside", "hiprune_plus", alpha=0.7, beta=0.0).reduce(tokens, 7)
    assert plain.anchor.tolist() == [[0, 1, 3, 4, 5, 6, 9]]
    question_alone = make("outside", "hiprune_plus", beta=1.0).reduce(tokens, 3)
    assert question_alone.anchor.tolist() == [[0, 2, 5]]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("hiprune", {"alpha": 6.0}, r"hiprune: alpha 6.0 is outside \[0, 5\]"),
        ("hiprune", {"layer": (0, 24)}, r"hiprune: layer 0 is outside 1\.\.24"),
        ("hiprune_plus", {"alpha": -1.0}, r"hiprune_plus: alpha -1.0"),
        ("hiprune_plus", {"beta": 1.1}, r"hiprune_plus: beta 1.1 is outside \[0, 1\]"),
    ],
)
def test_wrong_hyperparameters_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make("outside", name, **arguments)

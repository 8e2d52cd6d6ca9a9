import pytest
import torch

from foveate.compressors.outside.holov import relations, runs
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

FEATURES = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0], [0, 1], [-1, 0], [1, 1]])
ATTENTION = torch.tensor([0.10, 0.05, 0.05, 0.20, 0.10, 0.20, 0.10, 0.20])


@pytest.fixture
def example(tiny):
    return tiny(n=8, grid=(1, 2, 4), x=FEATURES.unsqueeze(0), cls_attention=ATTENTION.view(1, 1, 8))


def test_relations_vary_as_worked_out_by_hand():
    _, real = runs(8, 2, 4, FEATURES.device)
    found = relations(FEATURES.view(1, 2, 4, 2), real).flatten().tolist()
    assert found == pytest.approx([0.3704, 0.3704, 0.3704, 0, 0.4936, 0.1296, 0.2841, 0.4630], abs=1e-4)


def test_the_paper_chooses_by_attention_and_relations(example):
    assert make("outside", "holov", crops=2).reduce(example, 3).anchor.tolist() == [[0, 4, 7]]


def test_the_code_chooses_by_attention_alone_and_its_term_changes_nothing(example):
    for term in (0.0, 0.09, 1.0):
        method = make("outside", "holov", crops=2, select="attention", term=term)
        assert method.reduce(example, 3).anchor.tolist() == [[3, 5, 7]]


def test_quotas_do_not_depend_on_the_term(tiny):
    tokens = tiny(n=30, grid=(1, 5, 6), batch=4)
    for count in (3, 10, 25):
        per_crop = []
        for term in (0.0, 0.09, 1.0):
            anchor = make("outside", "holov", crops=6, term=term).reduce(tokens, count).anchor
            assert anchor.shape == (4, count)
            per_crop.append(torch.nn.functional.one_hot(anchor // 5, 6).sum(1))
        assert torch.equal(per_crop[0], per_crop[1]) and torch.equal(per_crop[0], per_crop[2])
        assert (per_crop[0] <= 5).all()


def test_a_full_crop_passes_its_places_on(tiny):
    attention = torch.tensor([0.97, 0.01, 0.005, 0.005, 0.004, 0.003, 0.002, 0.001])
    tokens = tiny(n=8, grid=(1, 2, 4), cls_attention=attention.view(1, 1, 8))
    method = make("outside", "holov", crops=4, select="attention")
    # weights .98 .01 .007 .003: all five places go to the first crop, which has two; three go round by weight and room
    assert method.reduce(tokens, 5).anchor.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("count", "crops"), [(64, 16), (128, 8), (192, 5), (576, 1), (1, 576)])
def test_crops_follow_the_count(count, crops):
    assert make("outside", "holov").cut(576, count)[0] == crops


def test_a_crop_of_equal_tokens_and_one_of_a_single_token_lose_no_places(tiny):
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 1], [0.3, 0.7]])
    tokens = tiny(n=5, grid=(1, 1, 5), x=x.unsqueeze(0), cls_attention=torch.full((1, 1, 5), 0.2))
    assert make("outside", "holov", crops=3).reduce(tokens, 3).anchor.tolist() == [[0, 2, 4]]


def test_one_crop_is_a_ranking_of_all(example):
    method = make("outside", "holov", crops=1, select="attention")
    assert method.reduce(example, 3).anchor.tolist() == [[3, 5, 7]]


def test_crops_of_unequal_length_are_runs_of_the_sequence():
    index, real = runs(8, 3, 3, FEATURES.device)
    assert [index[crop][real[crop]].tolist() for crop in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_reads_the_attention_of_the_block_that_feeds_the_projector():
    assert make("outside", "holov").signals(23) == {Signal("cls_attention", -1)}


@pytest.mark.parametrize(("arguments", "message"), [({"crops": 0}, "crops 0"), ({"select": "luck"}, "select 'luck'")])
def test_wrong_hyperparameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"holov: {message}"):
        make("outside", "holov", **arguments)

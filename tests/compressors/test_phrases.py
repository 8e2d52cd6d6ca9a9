import pytest
import torch

from foveate.compressors.phrases import Phrases, parse, phrase_similarity

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("question", "entities", "actions"),
    [
        ("What is the brown dog chasing?", ("brown dog",), ("chasing",)),
        (
            "How many red cups stand on the old table, and who sits there?",
            ("red cups", "old table", "sits"),
            ("stand",),
        ),
        ("Read the sign. Read the SIGN!", ("sign",), ("read",)),
        ("What is it?", (), ()),
    ],
)
def test_entities_are_runs_of_telling_words_and_actions_are_verbs(question, entities, actions):
    assert parse(question) == Phrases(entities, actions, " ".join(question.lower().split()))


def test_an_empty_question_has_no_phrases():
    assert parse(" ").listed() == []
    assert parse("Red cup falling").listed() == [
        ("entity", "red cup"),
        ("action", "falling"),
        ("sentence", "red cup falling"),
    ]


def test_each_kind_gives_its_best_cosine_after_centring():
    tokens = torch.tensor([[1.0, 0], [0, 2], [-3, 0], [0, -1]])  # centred already
    phrases = torch.tensor([[2.0, 0], [0, 1]])
    found = phrase_similarity(tokens, phrases, ["entity", "entity"])
    assert found[0].tolist() == [1, 1, 0, 0] and (found[1:] == -torch.inf).all()
    moved = phrase_similarity(torch.nn.functional.normalize(tokens, dim=-1) + 0, phrases, ["entity", "sentence"])
    assert moved[0].tolist() == [1, 0, -1, 0] and moved[2].tolist() == [0, 1, 0, -1]


def test_what_all_phrases_share_says_nothing():
    tokens = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    shared = torch.tensor([0, 0, 5.0])
    phrases = torch.tensor([[1.0, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]])
    plain = phrase_similarity(tokens, phrases, ["entity", "action", "sentence"])
    shifted = phrase_similarity(tokens, phrases + shared, ["entity", "action", "sentence"])
    assert torch.allclose(plain, shifted, atol=1e-4)


def test_the_order_of_phrases_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    tokens, phrases = torch.randn(9, 4, generator=generator), torch.randn(5, 4, generator=generator)
    kinds = ["entity", "entity", "action", "action", "sentence"]
    order = [3, 0, 4, 2, 1]
    again = phrase_similarity(tokens, phrases[order], [kinds[i] for i in order])
    assert torch.allclose(phrase_similarity(tokens, phrases, kinds), again, atol=1e-6)


def test_without_phrases_every_row_is_empty():
    assert (phrase_similarity(torch.ones(3, 2), torch.zeros(0, 2), []) == -torch.inf).all()

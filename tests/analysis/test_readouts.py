"""Pages read out behind one cache: which pages, that nothing is lost uncompressed, and that methods are told apart."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from foveate.analysis.readouts import Grade, behind_pictures, graded, of_pages, pages, read_out
from foveate.compressors.base import KVReducer, KVReduction
from foveate.models import load_host
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.tasks.transcripts import TOKENS


@dataclass(frozen=True)
class Uneven(KVReducer):
    """Head h of K keeps the first (h + 1) / K of the visual entries that it may keep."""

    name = "uneven"
    stages = ("decode",)

    def budgets(self, n, count, layer, depth, heads, last):
        return tuple(count * (head + 1) // heads for head in range(heads))

    def plan(self, cache, count):
        b, k, _, _ = cache.keys.shape
        text, at = (~cache.visual).nonzero()[:, 0], cache.visual.nonzero()[:, 0]
        kept = [torch.cat([text, at[:budget]]).sort().values for budget in self.budgets(0, count, 0, 0, k, 0)]
        keep = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)
        return KVReduction(keep.expand(b, -1, -1), count=torch.tensor([list(map(len, kept))]).expand(b, -1))


@pytest.fixture(scope="module")
def reference():
    return load_host("reference")


def test_pages_with_most_to_read_come_with_every_value_in_every_wording():
    first, again = (pages("tables", "validation", 2, seed=3) for _ in range(2))
    assert [page.questions for page in first] == [page.questions for page in again]
    assert [page.questions for page in first] != [page.questions for page in pages("tables", "validation", 2, seed=4)]
    for page in first:
        assert page.image.shape == (96, 96, 3) and len(page.questions) == len(set(page.questions)) == 24
        assert page.answers[:12] == page.answers[12:], "twelve cells, asked for in two wordings"
        assert page.questions[0].startswith("what is ") and page.questions[12].startswith("what is the ")
        assert len(page.text.replace(" ", "")) + 24 >= 64, "every answer takes an end besides"


def test_a_whole_page_of_the_transcripts_is_read_out_too():
    (page,) = pages("transcript", "test", 1)
    assert len(page.questions) == 16 and len(page.text.replace(" ", "")) + 16 >= TOKENS
    assert page.questions[0].startswith("what is the ") and page.questions[8].endswith(" is written?")


def test_pages_without_values_are_refused_with_those_that_have_some():
    with pytest.raises(ValueError, match="'counting': no pages of values; choose from tables, receipts, forms, transc"):
        pages("counting", "test", 1)


@pytest.mark.parametrize("plan", [UNCOMPRESSED, Plan.of(decode=("random", 0.5)), Plan.of(prefill=("fastv", 0.5))])
def test_the_first_question_is_answered_as_it_is_without_a_detour(reference, plan):
    """Methods that read the question have read this one."""
    shown = pages("forms", "test", 2)
    said, _ = read_out(reference, shown, plan)
    p = reference.open([page.image for page in shown], [page.questions[0] for page in shown]).run(plan)
    assert [values[0] for values in said] == p.decode(max_new_tokens=8)


def test_uncompressed_every_question_is_answered_as_in_a_fresh_prompt(reference):
    shown = pages("receipts", "test", 2)
    said, tokens = read_out(reference, shown, UNCOMPRESSED)
    count = 0
    for page, values in zip(shown, said, strict=True):
        p = reference.open([page.image] * len(page.questions), page.questions)
        assert values == p.decode(max_new_tokens=8)
        count += sum(map(len, p.generated))
    assert tokens == count


def test_only_the_words_behind_the_picture_go(reference):
    (page,) = pages("tables", "test", 1)
    p = reference.open([page.image], [page.questions[0]]).run(UNCOMPRESSED)
    row = p.rows[0]
    assert behind_pictures(row) == 1 + 144
    for old, new in zip(p.caches, of_pages(p), strict=True):
        assert new.length.tolist() == [145] and new.next_place.tolist() == [int(row.place[145:].min())]
        assert torch.equal(new.keys[:, :, :145], old.keys[:, :, :145])
    assert p.caches[0].length.tolist() == [len(row.ids)], "the pass stays as it is"


def test_heads_of_their_own_lengths_lose_the_same_words(host, inputs):
    p = host.open([each.image for each in inputs[:2]], [each.question for each in inputs[:2]])
    p.prefill()
    p.choose_decode(Uneven(), 0.5)
    before, after = p.caches[0], of_pages(p)[0]
    words = torch.tensor([len(row.ids) - behind_pictures(row) for row in p.rows])
    assert not bool((before.heads == before.heads[:, :1]).all())
    assert torch.equal(after.heads, before.heads - words[:, None])
    assert len(after.keys) == int(after.heads.sum()) and torch.equal(after.keys[0], before.keys[0])
    kept = int(after.heads[0, 0])
    assert torch.equal(after.keys[:kept], before.keys[:kept])
    assert torch.equal(after.keys[kept], before.keys[int(before.heads[0, 0])]), "the next head starts with its first"


def test_grades_are_worked_out_over_values_and_pages(host, monkeypatch):
    shown = pages("forms", "test", 3)
    answers = [[each[0] for each in page.answers] for page in shown]
    wrong = [answers[0], ["x" * len(value) for value in answers[1]], answers[2]]

    def told(host, some, plan):
        at = [shown.index(page) for page in some]
        return [wrong[i] for i in at], 10 * len(at)

    monkeypatch.setattr("foveate.analysis.readouts.read_out", told)
    sizes = [len(each) for each in answers]
    grade = graded(host, shown, UNCOMPRESSED, together=2)
    assert grade.right == pytest.approx((sizes[0] + sizes[2]) / sum(sizes)) and grade.tokens == 10
    assert 2 / 3 <= grade.alike < 0.8 and isinstance(grade, Grade)


def test_on_the_reference_keeping_more_reads_more(reference):
    shown = pages("tables", "test", 2)
    full, half, less = (
        graded(reference, shown, plan)
        for plan in (UNCOMPRESSED, Plan.of(decode=("look_m", 0.5)), Plan.of(decode=("random", 0.25)))
    )
    assert full.right > 0.9 and full.tokens >= 64
    assert full.right >= half.right > less.right and full.alike >= half.alike > less.alike

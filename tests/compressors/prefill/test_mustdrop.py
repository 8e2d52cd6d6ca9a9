import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

WORDS = torch.tensor([[0.4, 0.1, 0.02, 0.02], [0.3, 0.2, 0.01, 0.03]])  # two words on four visual tokens


@pytest.fixture
def example(tiny):
    """The worked example; CLS ranks the tokens 0, 1, 2, 3 and protects none."""
    both = torch.stack([WORDS.sum(0), WORDS.amax(0)])[None]
    return tiny(n=4, grid=(1, 2, 2), text_attention=both, cls_rank=torch.tensor([[0.25, 0.5, 0.75, 0.9]]))


@pytest.mark.parametrize(("local", "kept"), [(0.05, [0, 1]), (0.03, [0, 1, 3])])
def test_both_thresholds_of_the_worked_example(example, local, kept):
    # sums .7 .3 .03 .05, in all 1.08: the limit is .108; token 3's largest is .03, not below .03
    reduction = make("prefill", "mustdrop", global_share=0.1, local=local).reduce(example, 4)
    assert reduction.anchor.tolist() == [kept]


def test_the_count_is_a_ceiling_over_the_thresholds(example):
    assert make("prefill", "mustdrop", global_share=0.1, local=0.03).reduce(example, 2).anchor.tolist() == [[0, 1]]


def test_without_thresholds_the_largest_sums_stay(example):
    assert make("prefill", "mustdrop").reduce(example, 3).anchor.tolist() == [[0, 1, 3]]


def test_what_cls_looked_at_most_is_protected(tiny):
    both = torch.stack([WORDS.sum(0), WORDS.amax(0)])[None]
    tokens = tiny(n=4, grid=(1, 2, 2), text_attention=both, cls_rank=torch.tensor([[0.5, 0.25, 0.0, 0.75]]))
    assert make("prefill", "mustdrop").reduce(tokens, 2).anchor.tolist() == [[0, 2]]
    by_threshold = make("prefill", "mustdrop", global_share=0.1).reduce(tokens, 4)
    assert by_threshold.anchor.tolist() == [[0, 1, 2]]


def test_something_stays_where_no_token_passes(tiny):
    tokens = tiny(n=4, grid=(1, 2, 2), text_attention=torch.zeros(1, 2, 4) + 0.01, cls_rank=torch.ones(1, 4))
    assert make("prefill", "mustdrop", global_share=0.9, local=1.0).reduce(tokens, 4).anchor.tolist() == [[0]]


def test_rows_that_keep_different_numbers_say_so(tiny):
    even = torch.full((2, 4), 0.25)
    both = torch.stack([torch.stack([WORDS.sum(0), WORDS.amax(0)]), even])
    tokens = tiny(n=4, grid=(1, 2, 2), batch=2, text_attention=both, cls_rank=torch.ones(2, 4))
    reduction = make("prefill", "mustdrop", global_share=0.1, local=0.05).reduce(tokens, 4)
    assert reduction.count.tolist() == [2, 4] and reduction.anchor.tolist() == [[0, 1, -1, -1], [0, 1, 2, 3]]


def test_it_stands_behind_layers_2_6_10_and_14_and_reads_those():
    method = make("prefill", "mustdrop")
    assert [layer for layer, _ in method.sites(576, 64, 32)] == [3, 7, 11, 15]
    assert method.sites(576, 36, 32) == [(3, 288), (7, 144), (11, 72), (15, 36)]
    assert {s.layer for s in method.signals(32) if s.kind == "text_attention"} == {2, 6, 10, 14}


def test_layers_that_do_not_ascend_are_named():
    with pytest.raises(ValueError, match=r"mustdrop: layers \(6, 2\) are not ascending within 0..30"):
        make("prefill", "mustdrop", layers=((6, 2), 32))

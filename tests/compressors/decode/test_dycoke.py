import pytest
import torch

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def paid(*values):
    return torch.tensor([values])


def test_a_token_reads_all_text_and_what_it_attends_to_most_in_every_head_alike(tiny_cache):
    cache = tiny_cache(visual=4, text=(1, 2), heads=2, answer_attention=paid(0, 0.1, 0.4, 0.2, 0.3, 0, 0))
    method = make("decode", "dycoke")
    assert method.reduce(cache, 2).keep.tolist() == [[[0, 2, 4, 5, 6]] * 2]
    assert method.reduce(cache, 1).keep.tolist() == [[[0, 2, 5, 6]] * 2]
    assert method.reduce(cache, 4).keep.tolist() == [[[0, 1, 2, 3, 4, 5, 6]] * 2]


def test_equal_attention_goes_to_the_lower_index(tiny_cache):
    cache = tiny_cache(visual=4, text=(1, 1), heads=1, answer_attention=paid(0, 0.2, 0.3, 0.2, 0.2, 0))
    assert make("decode", "dycoke").reduce(cache, 3).keep.tolist() == [[[0, 1, 2, 3, 5]]]


def test_the_earlier_choice_stands_from_a_cosine_of_nine_tenths_on():
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    now = torch.tensor([[0.91, 0.4146], [0.89, 0.4560], [0.0, 1.0], [0.1, 0.1]])  # cosines .91, .89, 0, 1
    assert make("decode", "dycoke").stands(now, before).tolist() == [True, False, False, True]
    assert make("decode", "dycoke", gate=0.5).stands(now, before).tolist() == [True, True, False, True]


def test_places_without_a_visual_entry_do_not_change_how_stable_attention_is():
    now, before = torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([[0.1, 0.2, 0.3]])
    wide = [torch.cat([x[:, :1], torch.zeros(1, 4), x[:, 1:]], dim=1) for x in (now, before)]
    cosine = 0.11 / 0.14
    for gate, stable in ((cosine - 0.01, True), (cosine + 0.01, False)):
        method = make("decode", "dycoke", gate=gate)
        assert method.stands(now, before).tolist() == method.stands(*wide).tolist() == [stable]


def test_the_third_of_twenty_eight_layers_is_the_first_that_reads_in_part_and_goes_by_the_one_before():
    method = make("decode", "dycoke")
    assert method.signals(28) == {Signal("answer_attention", 2)}
    budgets = [method.budgets(100, 30, layer, 28, 2, last=100) for layer in range(28)]
    assert budgets == [(100, 100)] * 3 + [(30, 30)] * 25
    assert method.signals(4) == {Signal("answer_attention", 0)}
    assert make("decode", "dycoke", layer=(2, 4)).budgets(9, 4, 1, 4, 1, last=9) == (9,)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match="dycoke: layer 0 is below 1"):
        make("decode", "dycoke", layer=(0, 28))
    with pytest.raises(ValueError, match=r"dycoke: gate 1.5 is outside \[-1, 1\]"):
        make("decode", "dycoke", gate=1.5)

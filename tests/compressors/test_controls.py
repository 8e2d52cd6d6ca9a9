import pytest
import torch

from foveate.compressors.controls import Control
from foveate.compressors.registry import COMPRESSORS, make

pytestmark = pytest.mark.fast
NAMES = ("random", "stride")


def test_the_controls_are_these_and_stand_at_both_places():
    keys = {key for key, cls in COMPRESSORS.items() if issubclass(cls, Control)}
    assert keys == {(stage, name) for stage in ("outside", "prefill") for name in NAMES}


def test_the_lot_with_new_numbers_draws_the_same_tokens(tiny):
    tokens = tiny(n=16, grid=(1, 4, 4), batch=2)
    ours, theirs = (make("outside", name).plan(tokens, 5).anchor for name in ("random_renumbered", "random"))
    assert torch.equal(ours, theirs)
    assert COMPRESSORS["outside", "random_renumbered"].positions == "renumber"
    assert COMPRESSORS["outside", "random"].positions == "keep"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("depth", "layer"), [(32, 2), (8, 1), (28, 2), (64, 4), (2, 1)])
def test_at_prefill_a_control_acts_once_where_fastv_does(name, depth, layer):
    expected = [(layer, 36)]
    assert make("prefill", name).sites(144, 36, depth) == make("prefill", "fastv").sites(144, 36, depth) == expected
    assert make("prefill", name, layer=(16, 32)).sites(144, 36, 32) == [(16, 36)]

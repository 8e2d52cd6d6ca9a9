import pytest
import torch

from foveate.compressors.prefill.prunevid import frames
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal
from foveate.plans.named import load_plan
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast


def method(**options):
    return make("prefill", "prunevid", **options)


def kept(tiny, score, grid, count, position=None):
    tokens = tiny(n=len(score), grid=grid, text_peak=torch.tensor([score]))
    if position is not None:
        tokens.position.copy_(torch.tensor([position]))
    return method().reduce(tokens, count).anchor[0].tolist()


def test_each_frame_keeps_its_share_by_its_own_ranking(tiny):
    score = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2, 0.3, 0.4, 0.05]  # the second frame has nothing of the best five
    assert kept(tiny, score, (2, 1, 5), 4) == [0, 1, 7, 8]
    assert kept(tiny, score, (2, 1, 5), 5) == [0, 1, 2, 7, 8]  # what is left over goes to the first
    assert kept(tiny, score, (2, 1, 5), 10) == list(range(10))


def test_frames_of_unlike_numbers_keep_the_same_share_and_one_at_least(tiny):
    # as behind merging: seven, two and one token are left of three frames of nine
    position, score = [0, 1, 2, 3, 5, 6, 8, 10, 12, 26], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.01, 0.02, 0.001]
    assert kept(tiny, score, (3, 3, 3), 4, position) == [5, 6, 8, 9]  # 2.8, .8 and .4
    assert kept(tiny, score, (3, 3, 3), 2, position) == [6, 8]
    assert kept(tiny, score, (3, 3, 3), 1, position) == [6]


def test_tokens_without_a_place_are_one_more_frame(tiny):
    position = [0, 1, 4, 5, -1, -1]
    tokens = tiny(n=6, grid=(2, 2, 2))
    tokens.position.copy_(torch.tensor([position]))
    assert frames(tokens).tolist() == [[0, 0, 1, 1, 2, 2]]
    assert kept(tiny, [0.9, 0.8, 0.7, 0.6, 0.2, 0.3], (2, 2, 2), 3, position) == [0, 2, 5]


def test_equal_tokens_go_to_the_lower_place(tiny):
    assert kept(tiny, [0.1] * 8, (2, 2, 2), 4) == [0, 1, 4, 5]


@pytest.mark.parametrize(("layer", "depth", "reads"), [((10, 32), 32, 10), ((5, 32), 32, 5), ((10, 32), 4, 1)])
def test_reads_the_papers_layer_and_cuts_behind_it(layer, depth, reads):
    found = method(layer=layer)
    assert found.sites(900, 360, depth) == [(reads + 1, 360)]
    assert found.signals(depth) == {Signal("text_peak", reads)} and found.forgets


def test_a_layer_without_another_behind_it_is_refused():
    with pytest.raises(ValueError, match=r"prunevid: layer 31 is outside 1\.\.30"):
        method(layer=(31, 32))


def test_the_published_plan_keeps_about_a_sixth():
    plan = load_plan("prunevid")
    assert plan == Plan.of(projector=("prunevid", 0.4), prefill=("prunevid", 0.4))
    assert 0.15 < 0.4 * 0.4 < 0.17

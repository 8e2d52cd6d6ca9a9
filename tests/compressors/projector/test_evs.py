import pytest
import torch

from foveate.compressors.projector.evs import laid_out, retained
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

CLIP = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 1]]])
"""Three frames of two tokens; dissimilarities 0, .2929 and then 1, 0."""


@pytest.mark.parametrize(
    ("rate", "kept"), [(0.0, [0, 1, 2, 3, 4, 5]), (0.25, [0, 1, 3, 4]), (0.5, [0, 1, 4]), (0.75, [0, 1]), (0.9, [0, 1])]
)
def test_a_rate_keeps_what_changed_most_behind_the_first_frame(tiny, rate, kept):
    tokens, count = tiny(n=6, grid=(3, 1, 2), x=CLIP), retained((3, 1, 2), rate)
    assert count == len(kept)
    assert make("projector", "evs").reduce(tokens, count).anchor.tolist() == [kept]


@pytest.mark.parametrize(
    ("frames", "each", "rate", "count"),
    [(196, 32, 0.9, 627), (32, 196, 0.9, 627), (100, 10, 0.9, 99)]
    + [(frames, 256, 0.7, count) for frames, count in ((2, 256), (3, 256), (4, 307))],
)
def test_the_engines_cut_a_float_product(frames, each, rate, count):
    assert retained((frames, 1, each), rate) == count


def test_provisional_placeholders_add_up_to_what_stays():
    assert laid_out((4, 16, 16), 0.7) == [76, 76, 76, 79]
    assert laid_out((3, 1, 2), 0.25) == [1, 1, 2]
    assert sum(laid_out((32, 14, 14), 0.9)) == retained((32, 14, 14), 0.9)


def test_of_a_static_video_frame_0_and_the_lowest_indices_survive(tiny):
    still = torch.randn(1, 1, 12, 16, generator=torch.Generator().manual_seed(0)).expand(1, 4, 12, 16)
    tokens = tiny(n=48, grid=(4, 3, 4), x=still.reshape(1, 48, 16))
    assert make("projector", "evs").reduce(tokens, 17).anchor.tolist() == [list(range(17))]


def test_a_frame_at_least_is_kept_and_the_ranking_is_global():
    assert list(make("projector", "evs").reachable((3, 2, 2))) == list(range(4, 13))


def test_numbering_follows_the_engine():
    assert make("projector", "evs").positions == "keep"
    assert make("projector", "evs", positions="renumber").positions == "renumber"


def test_wrong_settings_are_named(tiny):
    with pytest.raises(ValueError, match="evs: positions 'mean' is neither 'keep' nor 'renumber'"):
        make("projector", "evs", positions="mean")
    with pytest.raises(ValueError, match=r"evs: rate 1 is outside \[0, 1\)"):
        retained((3, 2, 2), 1)
    with pytest.raises(ValueError, match="evs: 6 tokens are not a whole 3 x 2 x 2 grid"):
        make("projector", "evs").reduce(tiny(n=6, grid=(3, 2, 2)), 4)

"""LongVU: which frames stay, which of them whole, and which tokens of the shrunk ones."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, interpolate

from foveate.compressors.base import apply, apply_size, in_order
from foveate.compressors.projector.longvu import alike, blend, sharp, thinned
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def method(**options):
    return make("projector", "longvu", **options)


def clip(tiny, grid, x=None, features=None, asked=None, seed=0):
    """Tokens of a clip; `asked` is how much the question is about each frame."""
    t, n = grid[0], grid[1] * grid[2]
    signals = {} if features is None else {"features": features}
    if asked is not None:
        signals["text_similarity"] = torch.tensor([asked]).repeat_interleave(n, dim=1)
    return tiny(n=t * n, grid=grid, x=x, seed=seed, **signals)


def stays(likeness, threshold=0.83):
    return (likeness[0] < threshold).nonzero()[:, 0].tolist()


def test_of_equal_frames_the_middle_one_of_each_window_stays():
    same = torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(0))
    assert stays(alike(same.expand(1, 16, -1), 16)) == [8]
    assert stays(alike(same.expand(1, 20, -1), 16)) == [8, 18]  # windows of 16 and 4
    assert stays(alike(same.expand(1, 5, -1), 16)) == [2]  # one short window


def test_a_window_of_four_frames_by_hand():
    likeness = alike(torch.tensor([[[1.0, 0], [1, 0], [0.6, 0.8], [0, 1]]]), 16)
    assert likeness[0].tolist() == pytest.approx([0.65, 0.65, 0, 0.45], abs=1e-6)  # the third: .75, but the middle one
    assert stays(likeness) == [0, 1, 2, 3] and stays(likeness, 0.6) == [2, 3]


def test_a_still_clip_leaves_one_frame_of_each_window_as_it_is(tiny):
    still = clip(tiny, (20, 2, 3), *(torch.randn(1, 6, d).repeat(1, 20, 1) for d in (8, 6)))
    reduction = method().reduce(still, 40)  # 13 shrunk frames of 3 tokens would fit, two whole ones do
    assert (reduction.anchor[0] // 6).unique().tolist() == [8, 18] and reduction.anchor.shape == (1, 12)
    assert torch.equal(apply(reduction, still.x)[0], still.x[0, reduction.anchor[0]])


def test_frames_that_would_all_fit_shrunk_are_not_compared(tiny):
    still = clip(tiny, (4, 3, 3), torch.ones(1, 36, 8), torch.ones(1, 36, 6), [0.1, 0.4, 0.2, 0.3])
    assert method().small(3, 3) == (2, 2)
    frame = method().reduce(still, 20).anchor[0] // 9  # floor(20 / 4) = 5 frames would fit
    assert frame.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4  # (20 - 16) // 5 = 0 of them whole
    assert (method().reduce(still, 21).anchor[0] // 9).bincount().tolist() == [4, 9, 4, 4]
    assert (method().reduce(still, 19).anchor[0] // 9).tolist() == [2] * 9  # floor(19 / 4) = 4 is not more than 4


def test_how_many_frames_stay_whole():
    budget = 8192 - 40 - 16  # the context, the words, a reserve
    frames = torch.tensor([10, 55, 56, 57, 100, 127, 128, 140])
    wanted = [10, 55, 56, 56, 21, 0, 0, 0]  # 56 whole ones fit; 57: (8136 - 3648) // 80 = 56; 127 shrunk ones fit
    assert sharp(frames, budget, 144, 64).tolist() == wanted
    assert sharp(torch.tensor([5, 3]), 3, 1, 1).tolist() == [0, 0]  # where shrinking changes nothing, either is right


def test_of_many_frames_as_many_as_allowed_stay_at_even_distances():
    kept = torch.ones(2, 9, dtype=torch.bool)
    kept[1, 3:8] = False
    found = thinned(kept, 5)
    assert found[0].nonzero()[:, 0].tolist() == [0, 2, 4, 6, 8] and torch.equal(found[1], kept[1])
    assert int(thinned(torch.ones(1, 1000, dtype=torch.bool), 400).sum()) == 400
    assert thinned(kept, 1)[0].nonzero()[:, 0].tolist() == [0]


def test_frames_that_the_question_is_about_stay_whole_and_the_others_shrink(tiny):
    tokens = clip(tiny, (4, 3, 3), features=torch.eye(4).repeat_interleave(9, 0)[None], asked=[0.1, 0.4, 0.2, 0.3])
    reduction = in_order(method().reduce(tokens, 26))  # (26 - 4 * 4) // 5 = 2 whole
    assert reduction.anchor[0].tolist() == [0, 2, 6, 8, *range(9, 18), 18, 20, 24, 26, *range(27, 36)]
    made, x = apply(reduction, tokens.x)[0], tokens.x[0].view(4, 9, 8)
    assert torch.equal(made[4:13], x[1]) and torch.equal(made[17:], x[3])
    for first, frame in ((0, 0), (13, 2)):
        maps = x[frame].T.reshape(1, 8, 3, 3)
        wanted = interpolate(maps, (2, 2), mode="bilinear", align_corners=False).flatten(2)[0].T
        assert torch.allclose(made[first : first + 4], wanted, atol=1e-6)
    assert apply_size(reduction, tokens.size).sum().item() == pytest.approx(36)


@pytest.mark.parametrize(("size", "small"), [((12, 12), (8, 8)), ((5, 7), (3, 5)), ((1, 2), (1, 1)), ((4, 4), (4, 4))])
def test_shrinking_is_bilinear_and_uses_every_token(size, small):
    cell, weight, middle = blend(size, small)
    n, less = size[0] * size[1], small[0] * small[1]
    matrix = torch.zeros(n, less).scatter_add_(1, cell, weight)
    eye = torch.eye(n).view(n, 1, *size)
    assert torch.allclose(matrix, interpolate(eye, small, mode="bilinear", align_corners=False).flatten(1), atol=1e-6)
    assert (matrix.sum(1) > 0).all() and middle.unique().numel() == less
    assert (matrix[middle, torch.arange(less)] > 0).all()


def test_above_one_no_token_is_still_and_at_minus_one_all_are(tiny):
    x, kept = torch.randn(1, 20, 4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(1, 20, dtype=torch.bool)
    assert method(theta=1.01).moving(x, kept, 80).all()
    anchors = method(theta=-1.0).moving(x, kept, 80)[0]
    assert anchors.any(1).nonzero()[:, 0].tolist() == [0, 8, 16] and bool(anchors[[0, 8, 16]].all())
    kept[0, :3] = False  # chunks are of frames that are left: 3 .. 10 and 11 .. 19, in eights
    anchors = method(theta=-1.0).moving(x, kept, 80)[0]
    assert anchors.any(1).nonzero()[:, 0].tolist() == [3, 11, 19]


def test_the_most_alike_go_first_and_anchors_last():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [1, 1], [0, 1], [1, 0.5]]).view(1, 3, 2, 2)
    kept = torch.ones(1, 3, dtype=torch.bool)
    # cosines with the first frame: .9950 .7071 / 0 .4472
    order = [5, 4, 3, 2, 1, 0]  # what leaves at counts 5, 4 .. : 2, 3, 5, 4, then the anchors' last
    found = [method(theta=None).moving(x, kept, count).flatten().nonzero()[:, 0].tolist() for count in order]
    assert found == [[0, 1, 3, 4, 5], [0, 1, 4, 5], [0, 1, 4], [0, 1], [0], []]
    chained = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [1, 1]]).view(1, 2, 2, 2)
    pairs = method(theta=None, chunk=1).moving(chained, kept[:, :2], 3)  # every frame an anchor
    assert pairs.flatten().tolist() == [True, True, False, True]


def expected(tokens, count, threshold, theta):
    """One row's tokens by loops, in order."""
    t, h, w = tokens.grid
    n, x, features = h * w, tokens.x[0].view(t, h * w, -1), tokens.signals["features"][0].view(t, -1)
    small = method().small(h, w)
    less, left = small[0] * small[1], list(range(t))
    if not t < count // less:
        left = []
        for first in range(0, t, 16):
            window = list(range(first, min(t, first + 16)))
            for i in window:
                g = sum(float(cosine_similarity(features[i], features[j], 0)) for j in window) / len(window)
                left += [i] * (g < threshold or i == window[len(window) // 2])
    maps = x.mT.reshape(t, -1, h, w)
    low = interpolate(maps, small, mode="bilinear", align_corners=False).flatten(2).mT
    if len(left) * less > count:
        found = []
        for number, frame in enumerate(left):
            anchor = left[number // 8 * 8]
            for p in range(less):
                like = float(cosine_similarity(low[frame, p], low[anchor, p], 0))
                if frame == anchor:
                    like = -1000.0
                    if number:
                        like = -10 + float(cosine_similarity(low[frame, p], low[left[number - 8], p], 0))
                if like < theta:
                    found.append((like, frame * less + p))
        chosen = sorted(place for _, place in sorted(found)[:count])
        return low.flatten(0, 1)[chosen]
    wanted = len(left) if len(left) < count // n else min(len(left), (count - len(left) * less) // (n - less))
    asked = tokens.signals["text_similarity"][0].view(t, n).mean(1)
    whole = sorted(left, key=lambda i: -float(asked[i]))[:wanted]
    return torch.cat([x[i] if i in whole else low[i] for i in left])


@pytest.mark.parametrize("threshold", [0.3, 0.83])
@pytest.mark.parametrize("count", [3, 17, 40, 70, 100, 150, 200, 239, 240])
def test_the_whole_equals_its_loops(tiny, count, threshold):
    shared = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(5))
    for seed in range(3):
        tokens = clip(tiny, (20, 3, 4), seed=seed)
        tokens = clip(tiny, (20, 3, 4), x=tokens.x + shared, seed=seed)
        wanted = expected(tokens, count, threshold, 0.8)
        made = apply(in_order(method(threshold=threshold).reduce(tokens, count)), tokens.x)[0]
        assert len(made) <= count and torch.allclose(made, wanted, atol=1e-5)


def test_rows_may_leave_different_numbers(tiny):
    both = tiny(n=240, grid=(20, 3, 4), batch=2)
    both.signals["features"][1] = 1
    reduction = method().reduce(both, 100)  # two windows of equal frames in the second row
    assert reduction.count[1] == 24 < reduction.count[0] <= 100
    assert (reduction.anchor[1, 24:] == -1).all()


def test_it_reads_the_towers_tokens_and_the_question():
    assert method().signals(24) == {Signal("features"), Signal("text_similarity")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "window 0, chunk 8 and most 400"),
        ({"threshold": 0.0}, "threshold 0.0 is not above 0"),
        ({"low": (13, 12)}, r"low 13 is outside 1\.\.12"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"longvu: {message}"):
        method(**wrong)

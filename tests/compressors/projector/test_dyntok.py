import dataclasses

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

ROW = torch.tensor([[[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 1], [1, -1]]])  # cosines .995 .0995 .995 .774 0
PROJECTED = torch.tensor([2.0, 4, 10, 20, 5, 7]).view(1, 6, 1)


def worked(tiny):
    return tiny(n=6, grid=(1, 1, 6), x=PROJECTED, features=ROW)


def merged(tokens, count, **fields):
    """(tokens, sizes) of one row, the used slots alone."""
    reduction = make("projector", "dyntok", **fields).reduce(tokens, count)
    used = reduction.anchor[0] >= 0
    return apply(reduction, tokens.x)[0, used], apply_size(reduction, tokens.size)[0, used]


@pytest.mark.parametrize(
    ("threshold", "wanted", "sizes"),
    [(0.6, [3, 35 / 3, 7], [2, 3, 1]), (0.9, [3, 15, 5, 7], [2, 2, 1, 1])],
)
def test_neighbours_above_the_threshold_form_runs(tiny, threshold, wanted, sizes):
    x, size = merged(worked(tiny), 6, threshold=threshold)
    assert x.flatten().tolist() == pytest.approx(wanted) and size.tolist() == sizes


def test_the_count_is_met_by_its_own_threshold(tiny):
    for count, wanted in ((3, [3, 35 / 3, 7]), (4, [3, 15, 5, 7]), (2, [8.2, 7]), (1, [8])):
        assert merged(worked(tiny), count)[0].flatten().tolist() == pytest.approx(wanted)


def test_runs_are_anchored_where_they_begin(tiny):
    assert make("projector", "dyntok").reduce(worked(tiny), 3).anchor.tolist() == [[0, 2, 5]]


def test_a_ceiling_holds_whatever_the_threshold(tiny):
    x, _ = merged(worked(tiny), 2, threshold=0.9)
    assert x.flatten().tolist() == pytest.approx([8.2, 7])


def test_nothing_is_lost_and_a_higher_threshold_gives_no_fewer_tokens(tiny):
    tokens, before = tiny(n=60, grid=(3, 4, 5)), 0
    for threshold in (-1.1, -0.5, 0.0, 0.3, 0.6, 0.9, 1.0):
        x, size = merged(tokens, 60, threshold=threshold)
        assert len(x) >= before
        assert torch.allclose((size.unsqueeze(-1) * x).sum(0), tokens.x[0].sum(0), atol=1e-4)
        before = len(x)
    assert len(merged(tokens, 60, threshold=-1.1)[0]) == 12 and torch.equal(x, tokens.x[0])


def test_a_constant_frame_is_one_token_for_each_row(tiny):
    tokens = tiny(n=20, grid=(1, 4, 5), features=torch.ones(1, 20, 3))
    x, size = merged(tokens, 20, threshold=0.6)
    assert size.tolist() == [5] * 4
    assert torch.allclose(x, tokens.x.view(4, 5, -1).mean(1), atol=1e-6)


def test_the_lowest_likenesses_of_the_whole_clip_are_cut_and_ties_go_to_the_lower_index(tiny):
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0], [0, 1]]).unsqueeze(0)
    tokens = tiny(n=6, grid=(3, 1, 2), features=features)
    reduce = make("projector", "dyntok").reduce
    assert [reduce(tokens, count).anchor[0].tolist() for count in (3, 4, 5)] == [
        [0, 2, 4],
        [0, 2, 3, 4],
        [0, 2, 3, 4, 5],
    ]


def test_below_one_token_for_each_row_whole_rows_merge(tiny):
    rows = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])  # cosines .995 .0995 .995
    tokens = tiny(n=12, grid=(1, 4, 3), features=rows.repeat_interleave(3, dim=0).unsqueeze(0))
    x, size = merged(tokens, 2)
    assert size.tolist() == [6, 6]
    assert torch.allclose(x, tokens.x.view(2, 6, -1).mean(1), atol=1e-6)
    assert merged(tokens, 3)[1].tolist() == [3, 3, 6]
    assert list(make("projector", "dyntok").reachable((2, 4, 3))) == list(range(2, 25))


def test_a_single_column_merges_along_itself(tiny):
    tokens = tiny(n=4, grid=(1, 4, 1), features=torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]).unsqueeze(0))
    assert make("projector", "dyntok").reduce(tokens, 4).anchor.tolist() == [[0, 1, 2, 3]]
    assert merged(tokens, 2)[1].tolist() == [2, 2]


def test_equals_runs_found_by_loops(tiny):
    tokens = tiny(n=36, grid=(2, 3, 6), seed=4)
    f = torch.nn.functional.normalize(tokens.signals["features"][0], dim=-1)
    inner = sorted(float(f[i] @ f[i - 1]) for i in range(36) if i % 6)
    threshold = (inner[13] + inner[14]) / 2  # 14 cuts beside the 6 rows
    runs = []
    for i in range(36):
        if i % 6 and float(f[i] @ f[i - 1]) > threshold:
            runs[-1].append(i)
        else:
            runs.append([i])
    assert torch.allclose(merged(tokens, 20)[0], torch.stack([tokens.x[0, run].mean(0) for run in runs]), atol=1e-6)


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="dyntok: count 2 is below 3, one token for each frame"):
        make("projector", "dyntok").reduce(tiny(n=12, grid=(3, 2, 2)), 2)
    part = dataclasses.replace(tiny(n=10), grid=(1, 3, 4))
    with pytest.raises(ValueError, match="dyntok: 10 tokens are not a whole 1 x 3 x 4 grid"):
        make("projector", "dyntok").reduce(part, 6)

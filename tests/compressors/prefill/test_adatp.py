import math

import pytest
import torch

from foveate.compressors.prefill.adatp import budgets, frames, segments
from foveate.compressors.quotas import one_each
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def chain(*cosines):
    """Unit vectors (1, T, 2) of which neighbours have these cosines."""
    angle = torch.tensor([0.0, *(math.acos(c) for c in cosines)]).cumsum(0)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[None]


def video(tiny, vectors, relevance, score, grid):
    each = grid[1] * grid[2]
    n = grid[0] * each
    return tiny(
        n=n,
        grid=grid,
        last_query=torch.tensor(score).view(1, 1, n),
        frame_vectors=vectors.repeat_interleave(each, dim=1),
        frame_similarity=torch.tensor([relevance]).repeat_interleave(each, dim=1),
    )


def test_neighbours_that_differ_part_the_video():
    vectors, all_there = chain(0.95, 0.50, 0.97), torch.ones(1, 4, dtype=torch.bool)
    assert segments(vectors, all_there, 0.9).tolist() == [[0, 0, 1, 1]]
    assert segments(vectors, all_there, 1.1).tolist() == [[0, 1, 2, 3]]
    assert segments(vectors, all_there, -1.0).tolist() == [[0, 0, 0, 0]]


def test_a_frame_without_tokens_parts_nobody():
    vectors, there = chain(0.5, 0.5, 0.97), torch.tensor([[True, False, True, True]])
    assert segments(vectors, there, -0.55).tolist() == [[0, 0, 0, 0]]  # 120 degrees between the first and the third
    assert segments(vectors, there, 0.9).tolist() == [[0, 0, 1, 1]]


def test_a_place_is_not_repeated_while_others_are_free(tiny):
    # frames 0 and 1 are one segment: (0,a) .9 (0,b) .3 (1,a) .8 (1,b) .2; of frames 2 and 3 alike
    tokens = video(tiny, chain(0.95, 0.50, 0.97), [0.2] * 4, [0.9, 0.3, 0.8, 0.2] * 2, (4, 1, 2))
    kept = make("prefill", "adatp").reduce(tokens, 4).anchor[0].tolist()
    assert kept == [0, 1, 4, 5]  # never (1,a), though it is the second best
    assert make("prefill", "adatp").reduce(tokens, 6).anchor[0].tolist() == [0, 1, 2, 4, 5, 6]  # a second round


def test_relevant_segments_get_more_and_budgets_add_up(tiny):
    vectors = chain(0.95, 0.50, 0.97)
    tokens = video(tiny, vectors, [0.3, 0.3, 0.1, 0.1], [0.1] * 64, (4, 4, 4))
    frame = (tokens.position // 16).clamp(min=0)
    present, vector, relevance = frames(tokens, frame)
    segment = segments(vector, present, 0.9)
    share = budgets(segment, present, relevance, 0.5, 0.1)
    weight = math.exp(3) / (math.exp(3) + math.exp(1))
    assert share[0, :2].tolist() == pytest.approx([0.25 + 0.5 * weight, 0.25 + 0.5 * (1 - weight)])
    for count in (1, 2, 7, 31, 40, 64):
        budget = one_each(share, torch.tensor([[32, 32, 0, 0]]), count)[0].tolist()
        assert sum(budget) == count and max(budget) <= 32 and budget[2:] == [0, 0]
        assert count == 1 or min(budget[:2]) >= 1
    assert one_each(share, torch.tensor([[32, 32, 0, 0]]), 20)[0, :2].tolist() == [round(20 * share[0, 0].item()), 6]


def test_one_picture_is_ranked_by_the_last_query_alone(tiny):
    score = torch.rand(12, generator=torch.Generator().manual_seed(0))
    tokens = video(tiny, torch.ones(1, 1, 2), [0.1], score.tolist(), (1, 3, 4))
    plain = make("prefill", "fastv").reduce(tokens, 5).anchor
    assert torch.equal(make("prefill", "adatp").reduce(tokens, 5).anchor, plain)


def test_boundaries_read_the_layer_before_and_shrink_evenly():
    method = make("prefill", "adatp")
    assert method.sites(6272, 784, 28) == [(7, 3136), (14, 1568), (21, 784)]
    asked = {Signal("last_query", 13), Signal("frame_vectors"), Signal("frame_similarity")}
    assert method.signals_at(14, 28) == asked


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"boundaries": ((8, 8), 32)}, r"boundaries \(8, 8\) are not ascending within 1\.\.31"),
        ({"balance": 1.5}, r"balance 1.5 is outside \[0, 1\]"),
        ({"temperature": 0.0}, "temperature 0.0 is not above 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"adatp: {message}"):
        make("prefill", "adatp", **wrong)

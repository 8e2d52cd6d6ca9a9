import math

import pytest
import torch

from foveate.compressors.homography import (
    TOLERANCE,
    centres,
    corners,
    estimated,
    fitted,
    mapped,
    mutual,
    overlap,
    through,
)
from foveate.compressors.matching import cosine

pytestmark = pytest.mark.fast

PERSPECTIVE = torch.tensor([[1.1, 0.05, -0.6], [-0.04, 0.95, 0.3], [0.01, -0.004, 1.0]], dtype=torch.float64)


def shifted(columns, height, width):
    """The corners of a frame that many columns to the right."""
    quad = corners(height, width, torch.device("cpu"))
    return (quad + torch.tensor([float(columns), 0.0])).tolist()


@pytest.mark.parametrize(
    ("columns", "wanted"), [(0, (1, 1)), (3, (0.75, 0.6)), (6, (0.5, 1 / 3)), (12, (0, 0)), (-3, (0.75, 0.6))]
)
def test_overlap_of_a_shifted_frame(columns, wanted):
    assert overlap(shifted(columns, 8, 12), 8, 12) == pytest.approx(wanted)


def test_overlap_of_a_turned_square_is_an_octagon():
    r = math.sqrt(2) / 2 * 4
    turned = [(1.5 + r, 1.5), (1.5, 1.5 + r), (1.5 - r, 1.5), (1.5, 1.5 - r)]  # a 4 x 4 square, by 45 degrees
    shared = 16 * 2 * (math.sqrt(2) - 1)
    assert overlap(turned, 4, 4) == pytest.approx((shared / 16, shared / (32 - shared)))


def test_a_map_is_found_from_four_points_or_from_many_of_which_some_do_not_count():
    points = centres(5, 6, torch.device("cpu"))
    target = mapped(PERSPECTIVE, points)
    four = [0, 5, 24, 29]
    assert torch.allclose(fitted(points[four], target[four], torch.ones(4).double()), PERSPECTIVE, atol=1e-7)
    spoiled = target.clone()
    spoiled[3] += 10
    weight = torch.ones(30).double().index_fill(0, torch.tensor([3]), 0)
    assert torch.allclose(fitted(points, spoiled, weight), PERSPECTIVE, atol=1e-7)
    assert not torch.allclose(fitted(points, spoiled, torch.ones(30).double()), PERSPECTIVE, atol=1e-2)


def test_four_points_and_their_places_fix_a_map_that_three_in_a_line_do_not():
    points = centres(5, 6, torch.device("cpu"))
    target = mapped(PERSPECTIVE, points)
    some = torch.tensor([[0, 5, 24, 29], [29, 7, 12, 3]])
    assert torch.allclose(through(points[some], target[some]), PERSPECTIVE.expand(2, 3, 3), atol=1e-12)
    line, twice = torch.tensor([0, 2, 4, 29]), torch.tensor([0, 0, 24, 29])
    for four in (line, twice):
        m = through(points[four], target[four])
        assert torch.linalg.det(m).abs() < 1e-12 and not mapped(m, points[:1]).isnan().any()


def test_points_behind_the_horizon_are_infinitely_far():
    m = torch.eye(3).double()
    m[2, 0] = -1
    assert mapped(m, torch.tensor([[0.5, 0], [2.0, 0]]).double()).tolist() == [[1, 0], [math.inf, math.inf]]


def test_only_mutual_favourites_above_the_threshold_match():
    likeness = torch.tensor([[[0.9, 0.1, 0.2], [0.95, 0.3, 0.2], [0.1, 0.2, 0.7]]])
    to, matched = mutual(likeness, 0.8)
    assert to.tolist() == [[0, 0, 2]] and matched.tolist() == [[False, True, False]]


def scene(height, width, dim=32, seed=0):
    """A wide picture of tokens that are all different."""
    return torch.randn(height, width, dim, generator=torch.Generator().manual_seed(seed))


def frames(columns, height=8, width=12):
    """Cosines of a frame, rows, with one that lies that many columns to its left in the same scene, columns."""
    whole = scene(height, width + columns)
    first, second = (part.flatten(0, 1) for part in (whole[:, :width], whole[:, columns:]))
    return cosine(second, first).unsqueeze(0)


def test_a_shift_is_estimated_exactly():
    m, found = estimated(frames(3), 0.8, 8, 12, torch.tensor([7]))
    wanted = torch.tensor([[1.0, 0, 3], [0, 1, 0], [0, 0, 1]]).double()
    assert found.tolist() == [True] and torch.allclose(m[0], wanted, atol=1e-6)


def test_wrong_matches_do_not_spoil_the_estimate():
    likeness = frames(3)
    order = torch.arange(96)
    order[[5, 17, 40, 60, 77, 90]] = order[[60, 5, 90, 17, 40, 77]]
    m, found = estimated(likeness[:, order], 0.8, 8, 12, torch.tensor([3]))
    assert found.all() and torch.allclose(mapped(m[0], torch.zeros(1, 2).double()), torch.tensor([[3.0, 0]]).double())


def test_a_perspective_map_is_estimated_within_the_tolerance():
    height, width = 12, 12
    points = centres(height, width, torch.device("cpu"))
    target = mapped(PERSPECTIVE, points)
    nearest = torch.cdist(target, points)
    likeness = (1 - nearest / 5).clamp(min=-1).float().unsqueeze(0)
    m, found = estimated(likeness, 0.8, height, width, torch.tensor([1]))
    assert found.all() and (mapped(m[0], points) - target).norm(dim=-1).max() < TOLERANCE


def test_frames_without_anything_in_common_have_no_map():
    likeness = cosine(scene(8, 12, seed=1).flatten(0, 1), scene(8, 12, seed=2).flatten(0, 1)).unsqueeze(0)
    for given in (likeness, torch.zeros(1, 96, 96), torch.ones(1, 96, 96)):
        m, found = estimated(given, 0.8, 8, 12, torch.tensor([0]))
        assert found.tolist() == [False] and torch.equal(m[0], torch.eye(3).double())


def test_rows_are_estimated_by_themselves():
    both = torch.cat([frames(3), frames(1)])
    seeds = torch.tensor([5, -9])
    together = estimated(both, 0.8, 8, 12, seeds)[0]
    for row in range(2):
        assert torch.equal(together[row], estimated(both[row : row + 1], 0.8, 8, 12, seeds[row : row + 1])[0][0])

import math

import pytest
import torch

from foveate.compressors.density import centres, densities, reach

pytestmark = pytest.mark.fast


def on_circle(*degrees):
    angle = torch.tensor([float(d) for d in degrees]) * math.pi / 180
    unit = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return (1 - unit @ unit.T).clamp(min=0)[None]


def visited(distance, density, cutoff):
    """The same one point after the other."""
    found = []
    for i in sorted(range(len(density)), key=lambda i: (-density[i].item(), i)):
        if all(distance[i, c] > cutoff for c in found):
            found.append(i)
    return sorted(found)


FIVE = on_circle(0, 10, 20, 60, 65)


def test_densities_of_five_points_on_a_circle():
    assert FIVE[0, 0, [1, 2]].tolist() == pytest.approx([0.0152, 0.0603], abs=1e-4)
    assert FIVE[0, 2, 3].item() == pytest.approx(0.234, abs=1e-3)
    assert FIVE[0, 3, 4].item() == pytest.approx(0.0038, abs=1e-4)
    density = densities(FIVE)[0]
    assert density.tolist() == pytest.approx([4.858, 4.924, 4.964, 4.894, 4.854], abs=1e-3)
    assert density.argsort(descending=True).tolist() == [2, 1, 3, 0, 4]  # 20, 10, 60, 0, 65 degrees


@pytest.mark.parametrize(("cutoff", "found"), [(0.05, [0, 2, 3]), (0.20, [2, 3]), (2.0, [2]), (-1.0, [0, 1, 2, 3, 4])])
def test_centres_lie_farther_apart_than_the_cutoff(cutoff, found):
    assert centres(FIVE, densities(FIVE), torch.tensor([cutoff]))[0].nonzero()[:, 0].tolist() == found


def test_rounds_find_what_a_walk_by_density_finds():
    generator = torch.Generator().manual_seed(0)
    for cutoff in (0.05, 0.3, 0.7, 1.1):
        x = torch.nn.functional.normalize(torch.randn(6, 40, 3, generator=generator), dim=-1)
        distance = (1 - x @ x.transpose(1, 2)).clamp(min=0)
        density = densities(distance)
        found = centres(distance, density, torch.full((6,), cutoff))
        for row in range(6):
            assert found[row].nonzero()[:, 0].tolist() == visited(distance[row], density[row], cutoff)
            near = distance[row][:, found[row]].min(dim=1).values
            assert bool((near <= cutoff).all())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_search_gives_at_least_the_asked_number_of_centres(count):
    found = centres(FIVE, densities(FIVE), reach(FIVE, densities(FIVE), count))
    assert int(found.sum()) == count


def test_points_on_top_of_each_other_can_all_be_centres():
    same = torch.zeros(1, 4, 4)
    assert reach(same, densities(same), 3).item() < 0
    assert int(centres(same, densities(same), reach(same, densities(same), 3)).sum()) == 4


def test_a_row_is_searched_by_itself():
    generator = torch.Generator().manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(3, 20, 4, generator=generator), dim=-1)
    distance = (1 - x @ x.transpose(1, 2)).clamp(min=0)
    together = reach(distance, densities(distance), 7)
    for row in range(3):
        own = distance[row : row + 1]
        assert reach(own, densities(own), 7).item() == pytest.approx(together[row].item(), abs=1e-6)

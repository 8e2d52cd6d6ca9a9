"""The highest threshold that gives no more slots than wanted."""

import pytest
import torch

from foveate.compressors.clusters import components
from foveate.compressors.forests import spanning
from foveate.compressors.grouping import Pairs, among
from foveate.compressors.matching import STEP
from foveate.compressors.thresholds import Bracket, highest

pytestmark = pytest.mark.fast


def pairs(x, frames):
    """Of tokens (B, N, D) in frames of equal numbers, without a sample."""
    products, frame = x @ x.mT, torch.arange(x.shape[1]) // (x.shape[1] // frames)
    same = (frame == frame.unsqueeze(1)).expand(len(x), -1, -1)
    return Pairs(products, among(products), same, lambda allowed, index: allowed)


def at(of, tau):
    """The grouping at one tau."""
    lowest = components((of.likeness > tau) & of.same_frame)
    return of.grouped(lowest, torch.full((len(lowest), 1), tau))


def features(n, dim, seed, common=0.0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, dim, generator=generator) + common * torch.randn(1, 1, dim, generator=generator)


@pytest.mark.parametrize("frames", [1, 2, 12])
@pytest.mark.parametrize("seed", [0, 2])
def test_below_sixteen_no_threshold_that_fits_gives_more_where_numbers_rise_with_it(frames, seed):
    of = pairs(features(12, 3, seed, common=1.0), frames)
    numbers = [int(at(of, -1 + step / 50).number) for step in range(101)]
    assert numbers == sorted(numbers)
    for count in range(1, 13):
        assert int(highest(of, 1.0, count).number) >= max(number for number in numbers if number <= count)


@pytest.mark.parametrize("frames", [1, 4])
def test_of_many_at_most_one_slot_of_sixteen_is_lacking_where_tokens_are_all_different(frames):
    of = pairs(features(144, 16, 0, common=1.0, batch=2), frames)
    for count in (32, 60, 100, 140):
        number = highest(of, 1.0, count).number
        assert (number <= count).all() and (number >= count - count // 16).all()


def test_where_the_ceiling_fits_at_once_it_stays():
    of = pairs(features(48, 4, 1, common=1.0), 3)
    wanted = at(of, 0.95)
    number = int(wanted.number)
    for count in (number, number + 1, 2 * number):
        found = highest(of, 0.95, count)
        assert torch.equal(found.component, wanted.component) and torch.equal(found.slot, wanted.slot)
    assert 1 < int(highest(of, 0.95, number - 1).number) < number


def test_rows_do_not_know_of_each_other():
    x = torch.cat([features(36, 4, 2), features(36, 4, 3, common=3.0), features(36, 4, 4, common=1.0)])
    for count in (3, 11, 25):
        together = highest(pairs(x, 3), 1.0, count)
        for row in range(3):
            alone = highest(pairs(x[row : row + 1], 3), 1.0, count)
            assert torch.equal(alone.component[0], together.component[row])
            assert torch.equal(alone.slot[0], together.slot[row])


def test_components_of_components_are_as_if_made_at_once():
    of = pairs(features(24, 4, 5, batch=2), 2)
    forest = spanning(of.likeness, of.seen)
    fine, coarse = (forest.parts(torch.tensor([[a], [b]])) for a, b in ((0.8, 0.6), (0.5, 0.2)))
    once, twice = of.each.merged(coarse), of.each.merged(fine).merged(coarse)
    assert torch.equal(once.name, twice.name) and torch.allclose(once.sums, twice.sums, atol=1e-4)
    mixed = of.each.merged(fine).where(torch.tensor([[True], [False]]), of.each)
    assert mixed.number.tolist() == [[fine[0].unique().numel()], [24]]
    assert torch.allclose(mixed.merged(coarse).sums, once.sums, atol=1e-4)


def test_a_search_closes_on_neighbours_and_knows_equal_joints():
    weight = [0.875, 0.75, 0.75, 0.5, -torch.inf]  # five tokens, one frame
    bracket = Bracket(weight, 1.0, 2)
    assert [bracket.above(tau) for tau in (0.9, 0.75, 0.7, -2)] == [0, 1, 3, 4]
    assert bracket.below(2) == bracket.below(3) == 0.75 - STEP and bracket.below(0) == 1.0
    slots = {0: 5, 1: 4, 3: 1, 4: 1}  # slots by joints: none gives two
    looked = []
    while bracket.open:
        looked.append(bracket.above(bracket.below(bracket.at)))
        bracket.narrow(slots[looked[-1]])
    assert set(looked) <= set(slots) and len(looked) <= 4
    assert (bracket.tau, bracket.slots, bracket.exceeds) == (0.75 - STEP, 1, 1)
    assert bracket.coarse and bracket.gap == (0.75, 0.875 - STEP)


def test_the_ceiling_bounds_the_search():
    bracket = Bracket([0.875, 0.75, 0.5, -torch.inf], 0.8, 4)
    assert (bracket.forced, bracket.at, bracket.below(1)) == (1, 1, 0.8)
    bracket.narrow(3)
    assert not bracket.open and not bracket.coarse and bracket.tau == 0.8


def test_features_that_are_no_numbers_end_the_search():
    x = features(12, 4, 6)
    x[0, 3] = torch.nan
    assert highest(pairs(x, 2), 1.0, 5).slot.shape == (1, 12)

"""The highest cosine that joins tokens to no more slots than wanted, see `grouping`. Knows tensors only."""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from foveate.compressors.forests import spanning
from foveate.compressors.grouping import Grouping, Pairs
from foveate.compressors.matching import STEP

LACKING = 16
"""The search ends where no more than one slot of so many is lacking."""

LOWEST = -2.0
"""Below all cosines, which may be a little below -1."""


def highest(pairs: Pairs, most: float, count: int) -> Grouping:
    """The grouping at the highest tau up to `most` that gives no more slots than the count, or 1/16 of it fewer.

    Within frames only the joints of a spanning forest matter. With k of them N tokens have N - k components, and no
    more slots: where there are as many components as the count, k is large enough. From there up the search brackets k
    for each row; between two neighbours a spanning forest of the means tells the rest.

    Args:
        pairs: of tokens.
        most: where a row fits at once, it stays.
        count: slots that a row may have.
    """
    forest = spanning(pairs.likeness, pairs.seen)

    def column(taus: list[float]) -> Tensor:
        return forest.weight.new_tensor(taus).unsqueeze(1)

    most = float(column([most]))  # as float32 has it
    brackets = [Bracket(row, most, count) for row in forest.weight.tolist()]
    parts = pairs.each  # of all components that are yet to come
    while any(bracket.open for bracket in brackets):
        tau = column([bracket.below(bracket.at) for bracket in brackets])
        lowest = forest.parts(tau)
        means = parts.merged(lowest)
        slots = pairs.slots(means, lowest, tau)
        for bracket, number in zip(brackets, slots.flatten().tolist(), strict=True):
            bracket.narrow(number)
        if bool((slots > count).any()):
            parts = means.where(slots > count, parts)
    tau = column([bracket.tau for bracket in brackets])
    if any(bracket.coarse for bracket in brackets):
        bottom, top = (column(list(ends)) for ends in zip(*(bracket.gap for bracket in brackets), strict=True))
        likeness, _, seen = pairs.across(parts, forest.parts(top))  # they are what exceeds
        lacking = (parts.number - count).clamp(min=1)
        between = spanning(likeness, seen).weight.gather(1, lacking - 1) - STEP
        tau = torch.where((between >= bottom) & (bottom < top), between, tau)
    while True:
        found = pairs.grouped(forest.parts(tau), tau)
        above = (found.number > count) & (tau > LOWEST)  # where sums come out otherwise in another order
        if not bool(above.any()):
            return found
        tau = torch.where(above, tau - STEP, tau)


class Bracket:
    """The search in one row: between a number of joints within frames that fits and a smaller one that does not.

    Args:
        weight: cosines of the forest's joints, falling, then -inf.
        most: highest tau.
        count: slots that the row may have.
    """

    def __init__(self, weight: list[float], most: float, count: int) -> None:
        self.below_zero, self.most, self.count = [-each for each in weight], most, count  # ascending
        n, edges, self.forced = len(weight), self.above(-math.inf), self.above(most)
        self.fits = max(n - count, self.forced) if edges >= n - count else edges + 1  # the latter: everything joined
        self.exceeds = self.forced - 1  # tau may not be so high
        self.slots, self.too_many = count * count // n, n - self.exceeds  # what is expected there
        self.tau = -math.inf  # the highest that was seen to fit
        self.looks = 0
        self.at = self.forced if most < 1 else self.guess()  # joints to look at

    def above(self, tau: float) -> int:
        """How many joints are."""
        return bisect_left(self.below_zero, -tau)

    def below(self, joints: int) -> float:
        """The highest tau with so many joints, or as many more as are equal to the last."""
        return self.most if joints <= 0 else max(LOWEST, min(self.most, -self.below_zero[joints - 1] - STEP))

    @property
    def near(self) -> bool:
        """Hardly a slot is lacking."""
        return self.tau > -math.inf and self.slots >= self.count - self.count // LACKING

    @property
    def open(self) -> bool:
        """There is something to look at yet."""
        return self.tau == -math.inf if self.fits - self.exceeds <= 1 else not self.near

    @property
    def coarse(self) -> bool:
        """Slots are lacking, and a joint less is too much."""
        return not self.near and self.exceeds >= self.forced

    @property
    def gap(self) -> tuple[float, float]:
        """Where it is coarse: the lowest tau and the highest with as many joints as exceed; else nothing wide."""
        if not self.coarse:
            return self.tau, self.tau
        return -self.below_zero[self.exceeds], self.below(self.exceeds)

    def guess(self) -> int:
        """Joints to look at: where a line through the logarithms of both numbers has the count, or half-way."""
        n, known = len(self.below_zero), self.tau > -math.inf
        if self.fits - self.exceeds <= 1 or (self.looks and not known):
            return self.fits  # has the fewest components: a cheap look
        at = (self.fits + self.exceeds) // 2
        if self.looks % 3 < 2:
            few, many = (math.log(max(1, n - joints)) for joints in (self.fits, self.exceeds))
            low, high = (math.log(max(1, slots)) for slots in (self.slots, self.too_many))
            aim = math.log(self.count * (1 - 0.5 / LACKING))
            at = n - round(math.exp(few + (many - few) * (aim - low) / (high - low)))
        return max(self.exceeds + 1, min(self.fits - 1, at))

    def narrow(self, slots: int) -> None:
        """A look has found so many; nothing changes once the search is over."""
        if not self.open:
            return
        tau = self.below(self.at)
        if slots <= self.count or self.at == self.fits:  # the latter fits as well, unless features are no numbers
            self.fits, self.slots, self.tau = min(self.at, self.above(tau + STEP) + 1), slots, tau
        else:
            self.exceeds, self.too_many = self.above(tau), slots
        self.looks += 1
        self.at = self.guess()

"""LLaVA-Scissor's components of alike tokens, within frames and then of their means. Knows tensors only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.choosing import first_max, rank, selection
from foveate.compressors.clusters import components, sizes, summed
from foveate.compressors.matching import STEP, rounded
from foveate.compressors.tokens import Reduction

HALVINGS = 22
"""Of [-1, 1], until they part any two cosines, which are multiples of 2^-20."""


@dataclass(frozen=True)
class Grouping:
    """Tokens in components, and these in slots; both are named by the token that is their hub.

    Attributes:
        component: (B, N) int64 for each token.
        slot: (B, N) int64 for each component, at its name.
    """

    component: Tensor
    slot: Tensor

    @property
    def of_token(self) -> Tensor:
        """(B, N) int64 the slot of each token."""
        return self.slot.gather(1, self.component)

    @property
    def stands(self) -> Tensor:
        """(B, N) bool, the tokens that name a slot."""
        slot = self.of_token
        return slot == torch.arange(slot.shape[1], device=slot.device)

    @property
    def number(self) -> Tensor:
        """(B, 1) int64 how many slots."""
        return self.stands.sum(dim=-1, keepdim=True)

    @property
    def weight(self) -> Tensor:
        """(B, N) float32 what each token counts in the mean of its slot's components' means."""
        members = sizes(self.component)
        number = torch.zeros_like(members).scatter_add_(1, self.slot, (members > 0).long())
        return 1 / (members.gather(1, self.component) * number.gather(1, self.of_token))

    def likeness(self, products: Tensor) -> Tensor:
        """(B, N, N) cosine of each token with the mean of each slot, -inf where no slot has this name."""
        slot, weight = self.of_token, self.weight
        to_slot = summed(products * weight.unsqueeze(2), slot, slot.shape[1]).mT
        own = to_slot.gather(2, slot.unsqueeze(-1)).squeeze(-1)
        square = torch.zeros_like(own).scatter_add_(1, slot, own * weight)
        likeness = cosines(to_slot, products.diagonal(dim1=1, dim2=2), square)
        return likeness.masked_fill(~self.stands.unsqueeze(1), -torch.inf)

    def split(self, products: Tensor, count: int) -> Grouping:
        """With as many tokens more in slots of their own as it takes: those least like their slot, but not its hub."""
        stands, slot = self.stands, self.of_token
        lacking = count - self.number
        if not bool(lacking.any()):
            return self
        own = self.likeness(products).gather(2, slot.unsqueeze(-1)).squeeze(-1)
        alone = rank((-own).masked_fill(stands, -torch.inf)) < lacking
        index = torch.arange(slot.shape[1], device=slot.device)
        return Grouping(torch.where(alone, index, self.component), torch.where(alone, index, self.slot))

    def where(self, mine: Tensor, other: Grouping) -> Grouping:
        """This one in the rows where mine (B, 1) is true, another one elsewhere."""
        return Grouping(torch.where(mine, self.component, other.component), torch.where(mine, self.slot, other.slot))

    def refilled(self, products: Tensor) -> Reduction:
        """Each slot's mean of means, averaged with all the tokens that are most like it."""
        stands = self.stands
        nearest = self.likeness(products).argmax(dim=-1)
        share = 1 / (1 + sizes(nearest))
        into = torch.stack([self.of_token, nearest], dim=-1)  # (B, N, 2)
        weight = share.unsqueeze(-1).expand_as(into.float()).gather(1, into)
        weight = weight * torch.stack([self.weight, torch.ones_like(self.weight)], dim=-1)
        number = (stands.cumsum(dim=-1) - 1).unsqueeze(-1).expand_as(into)
        return replace(selection(stands), into=number.gather(1, into), weight=weight)


def cosines(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(B, N, M) inner products as cosines, given the squares (B, N) and (B, M) of both sides; 0 for a zero vector."""
    a, b = (1 / square.clamp(min=0).sqrt().clamp(min=1e-12) for square in (left, right))
    return rounded(products * a.unsqueeze(2) * b.unsqueeze(1))


def among(products: Tensor) -> Tensor:
    """(B, N, N) cosines from the inner products of vectors with each other."""
    square = products.diagonal(dim1=1, dim2=2)
    return cosines(products, square, square)


def grouped(
    products: Tensor, likeness: Tensor, same_frame: Tensor, tau: Tensor, sampled: Callable[[Tensor, int], Tensor]
) -> Grouping:
    """Components within frames, and slots from the components of their means.

    Args:
        products: (B, N, N) inner products of the tokens.
        likeness: (B, N, N) their cosines.
        same_frame: (B, N, N) bool.
        tau: (B, 1, 1) cosine above which two are joined.
        sampled: of the pairs that may be joined, those that a sample sees; with a salt for its draw.
    """
    component, members = joined(likeness, same_frame, tau, sampled(same_frame, 0))
    n = component.shape[1]
    weight = 1 / members.gather(1, component).float()
    means = summed(products * weight.unsqueeze(2), component, n)
    means = summed(means.mT * weight.unsqueeze(2), component, n)  # (B, N, N) at the components' names
    exists = (members > 0).unsqueeze(1) & (members > 0).unsqueeze(2)
    slot, _ = joined(among(means), exists, tau, sampled(exists, n))
    return Grouping(component, slot)


def joined(likeness: Tensor, allowed: Tensor, tau: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N) the component of each, named by the member with most joints (ties: the lowest index); (B, N) its size.

    Args:
        likeness: (B, N, N) cosines.
        allowed: (B, N, N) bool, the pairs that count as joints.
        tau: (B, 1, 1) cosine above which two are joined.
        seen: (B, N, N) bool, the allowed pairs by which components grow.
    """
    alike = (likeness > tau) & allowed
    lowest = components(alike if seen is allowed else alike & seen)
    hub = first_max(alike.sum(dim=-1).float(), lowest, alike.shape[1])[1]
    name = hub.gather(1, lowest)
    return name, sizes(name) * allowed.diagonal(dim1=1, dim2=2)


def sample(chance: Tensor, allowed: Tensor, epsilon: float) -> Tensor:
    """(B, N) bool: of each set of n that may be joined, ceil(ln n / epsilon^2) with the highest chance (B, N)."""
    number = allowed.sum(dim=-1)
    index = torch.arange(chance.shape[1], device=chance.device)
    before = (chance.unsqueeze(1) > chance.unsqueeze(2)) | (
        (chance.unsqueeze(1) == chance.unsqueeze(2)) & (index < index.unsqueeze(1))
    )
    wanted = (number.clamp(min=1).double().log() / epsilon**2).ceil()
    return (before & allowed).sum(dim=-1) < wanted


def highest(at: Callable[[Tensor], Grouping], most: float, count: int, like: Tensor) -> Grouping:
    """The grouping at the highest tau up to `most` that gives no more slots than the count, found by halving.

    The search ends early where no more than one slot of sixteen is lacking.

    Args:
        at: the grouping of every row at its tau (B, 1, 1).
        most: where a row fits at once, it stays.
        count: slots that a row may have.
        like: gives batch and device.
    """
    low, high = (torch.full((like.shape[0], 1, 1), tau, device=like.device) for tau in (-1 - STEP, min(most, 1.0)))
    best = at(high)
    settled = best.number <= count
    if not bool(settled.all()):
        best = best.where(settled, at(low))  # one slot
    for _ in range(HALVINGS):
        settled = settled | (best.number >= count - count // 16)
        if bool(settled.all()):
            break
        middle = (low + high) / 2
        trial = at(middle)
        fits = ~settled & (trial.number <= count)
        best = trial.where(fits, best)
        low = torch.where(fits.unsqueeze(-1), middle, low)
        high = torch.where((fits | settled).unsqueeze(-1), high, middle)
    return best

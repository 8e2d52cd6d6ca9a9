"""LLaVA-Scissor's components of alike tokens, within frames and then of their means. Knows tensors only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.compressors.choosing import first_max, rank, selection
from foveate.compressors.clusters import components, sizes, summed
from foveate.compressors.matching import rounded
from foveate.compressors.tokens import Reduction


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

    @property
    def place(self) -> Tensor:
        """(B, N) int64 of each token, which of its row's slots it is in, in the order of their names."""
        return numbered(self.of_token, self.stands)

    def to_slots(self, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K, N) inner products of the mean of each slot, by `place`, with each token; (B, N) of each token with its
        own slot's; (B, K) squares of these means."""
        place, weight = self.place, self.weight
        inner = summed(products * weight.unsqueeze(2), place, int(self.number.max()))
        own = inner.gather(1, place.unsqueeze(1)).squeeze(1)
        return inner, own, torch.zeros_like(inner[..., 0]).scatter_add_(1, place, own * weight)

    def split(self, products: Tensor, count: int) -> Grouping:
        """With as many tokens more in slots of their own as it takes: those least like their slot, but not its hub."""
        lacking = count - self.number
        if not bool(lacking.any()):
            return self
        _, own, square = self.to_slots(products)
        norms = inverse_norm(square).gather(1, self.place) * inverse_norm(products.diagonal(dim1=1, dim2=2))
        alone = rank((-rounded(own * norms)).masked_fill(self.stands, -torch.inf)) < lacking
        index = torch.arange(own.shape[1], device=own.device)
        return Grouping(torch.where(alone, index, self.component), torch.where(alone, index, self.slot))

    def refilled(self, products: Tensor) -> Reduction:
        """Each slot's mean of means, averaged with all the tokens that are most like it."""
        inner, _, square = self.to_slots(products)
        likeness = cosines(inner, square, products.diagonal(dim1=1, dim2=2))
        beyond = torch.arange(inner.shape[1], device=inner.device) >= self.number
        nearest = likeness.masked_fill_(beyond.unsqueeze(2), -torch.inf).argmax(dim=1)
        share = 1 / (1 + sizes(nearest))
        into = torch.stack([self.place, nearest], dim=-1)  # (B, N, 2)
        weight = share.unsqueeze(-1).expand_as(into.float()).gather(1, into)
        weight = weight * torch.stack([self.weight, torch.ones_like(self.weight)], dim=-1)
        return replace(selection(self.stands), into=into, weight=weight)


def numbered(name: Tensor, stands: Tensor) -> Tensor:
    """(B, N) int64 for names (B, N): how many names come before, given those (B, N) bool that are one."""
    return (stands.cumsum(dim=-1) - 1).gather(1, name)


def cosines(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(B, N, M) inner products as cosines, given the squares (B, N) and (B, M) of both sides; 0 for a zero vector."""
    return rounded((products * inverse_norm(left).unsqueeze(2)).mul_(inverse_norm(right).unsqueeze(1)))


def inverse_norm(square: Tensor) -> Tensor:
    """1 / norm, given its square; finite for 0."""
    return 1 / square.clamp(min=1e-24).sqrt()


def among(products: Tensor) -> Tensor:
    """(B, N, N) cosines from the inner products of vectors with each other."""
    scale = inverse_norm(products.diagonal(dim1=1, dim2=2))
    return rounded((products * scale.unsqueeze(2)).mul_(scale.unsqueeze(1)))


@dataclass(frozen=True)
class Means:
    """The means of C components, in the order of their names, by sums: their cosines are those of the means.

    Attributes:
        sums: (B, C, C) inner products of the sums, 0 beyond the row's components.
        name: (B, C) int64 of each, a member.
        number: (B, 1) int64 how many there are.
    """

    sums: Tensor
    name: Tensor
    number: Tensor

    @property
    def exists(self) -> Tensor:
        """(B, C) bool, those that are there."""
        return torch.arange(self.name.shape[1], device=self.name.device) < self.number

    def merged(self, component: Tensor) -> Means:
        """Of components (B, N) that these are parts of, named by members."""
        stands = component == torch.arange(component.shape[1], device=component.device)
        number = stands.sum(dim=-1, keepdim=True)
        most = int(number.max())
        place = numbered(component, stands)
        into = place.gather(1, self.name)
        rows = summed(self.sums, into, most)
        sums = rows.new_zeros(len(rows), most, most).scatter_add_(2, into.unsqueeze(1).expand_as(rows), rows)
        return Means(sums, number.new_zeros(len(number), most).scatter_(1, place, component), number)

    def where(self, mine: Tensor, other: Means) -> Means:
        """These in the rows where mine (B, 1) is true, others elsewhere."""
        if bool(mine.all()):
            return self
        number = torch.where(mine, self.number, other.number)
        most = int(number.max())

        def fit(means: Means) -> tuple[Tensor, Tensor]:
            room = max(0, most - means.name.shape[1])
            return pad(means.sums, (0, room, 0, room))[:, :most, :most], pad(means.name, (0, room))[:, :most]

        (sums, name), (others, their) = fit(self), fit(other)
        return Means(torch.where(mine.unsqueeze(2), sums, others), torch.where(mine, name, their), number)


@dataclass(frozen=True)
class Pairs:
    """All pairs of N tokens.

    Attributes:
        products: (B, N, N) inner products.
        likeness: (B, N, N) cosines.
        same_frame: (B, N, N) bool.
        sampled: of the pairs (B, M, M) that may be joined, those that a sample sees; with the number (B, M) by which
            each of the M draws.
    """

    products: Tensor
    likeness: Tensor
    same_frame: Tensor
    sampled: Callable[[Tensor, Tensor], Tensor]

    @property
    def each(self) -> Means:
        """Every token by itself."""
        b, n, _ = self.products.shape
        index = torch.arange(n, device=self.products.device)
        return Means(self.products, index.expand(b, n), torch.full_like(index[:1], n).expand(b, 1))

    @property
    def seen(self) -> Tensor:
        """(B, N, N) bool, the pairs within frames that a sample sees."""
        return self.sampled(self.same_frame, self.each.name)

    def across(self, means: Means, lowest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of components (B, N), named by their lowest members: (B, C, C) cosines, pairs that exist, pairs seen."""
        exists = means.exists.unsqueeze(1) & means.exists.unsqueeze(2)
        return among(means.sums), exists, self.sampled(exists, lowest.gather(1, means.name) + lowest.shape[1])

    def slots(self, means: Means, lowest: Tensor, tau: Tensor) -> Tensor:
        """(B, 1) int64 how many slots such components form at tau (B, 1)."""
        likeness, _, seen = self.across(means, lowest)
        label = components((likeness > tau.unsqueeze(2)) & seen)
        first = label == torch.arange(label.shape[1], device=label.device)
        return (first & means.exists).sum(dim=-1, keepdim=True)

    def grouped(self, lowest: Tensor, tau: Tensor) -> Grouping:
        """Components within frames, and slots from the components of their means.

        Args:
            lowest: (B, N) int64 the lowest member of each token's component.
            tau: (B, 1) by which it is that.
        """
        component = named((self.likeness > tau.unsqueeze(2)) & self.same_frame, lowest)
        means = self.each.merged(component)
        likeness, exists, seen = self.across(means, lowest)
        slot, _ = joined(likeness, exists, tau.unsqueeze(2), seen)
        place = numbered(component, component == self.each.name)
        return Grouping(component, means.name.gather(1, slot).gather(1, place))


def joined(likeness: Tensor, allowed: Tensor, tau: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N) the component of each, see `named`; (B, N) its size, at its name.

    Args:
        likeness: (B, N, N) cosines.
        allowed: (B, N, N) bool, the pairs that count as joints.
        tau: (B, 1, 1) cosine above which two are joined.
        seen: (B, N, N) bool, the allowed pairs by which components grow.
    """
    alike = (likeness > tau) & allowed
    name = named(alike, components(alike if seen is allowed else alike & seen))
    return name, sizes(name) * allowed.diagonal(dim1=1, dim2=2)


def named(alike: Tensor, lowest: Tensor) -> Tensor:
    """(B, N) components (B, N) named by the member that has most joints (B, N, N) bool; ties: the lowest index."""
    joints = alike.sum(dim=-1, dtype=torch.int32).float()
    return first_max(joints, lowest, alike.shape[1])[1].gather(1, lowest)


def sample(chance: Tensor, allowed: Tensor, epsilon: float) -> Tensor:
    """(B, N) bool: of each set of n that may be joined, ceil(ln n / epsilon^2) with the highest chance (B, N)."""
    number = allowed.sum(dim=-1)
    index = torch.arange(chance.shape[1], device=chance.device)
    before = (chance.unsqueeze(1) > chance.unsqueeze(2)) | (
        (chance.unsqueeze(1) == chance.unsqueeze(2)) & (index < index.unsqueeze(1))
    )
    wanted = (number.clamp(min=1).double().log() / epsilon**2).ceil()
    return (before & allowed).sum(dim=-1) < wanted

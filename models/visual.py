"""Visual tokens between the stages, row by row, and how a compressor's answer is applied to all that rides along."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool3d

from foveate.compressors.base import (
    Compressor,
    Grid,
    Reducer,
    Reduction,
    Tokens,
    apply,
    apply_position,
    apply_size,
)
from foveate.compressors.signals import VECTORS
from foveate.models.errors import CountMismatch, HostError


@dataclass(frozen=True)
class VisualState:
    """One view's visual tokens at a stop.

    Attributes:
        x: (n, D) features.
        size: (n,) float32, original tokens that each stands for.
        position: (n,) int64 flat index into `grid`; -1 = CLS or a summary.
        origin: (n,) int64 index of the token, among those of the uncompressed view, whose place each takes.
        place: (n, P) int64 position ids in the decoder, counted from those of the view's first token.
        grid: (T, H, W) that `position` refers to.
        whole: the tokens are that grid, complete and in order.
        stage: after which stage.
        cls: (D,) the encoder's CLS, where it is still at hand; a video has none.
        cls_stays: CLS is part of what the decoder reads ("full" feature selection); protected, never counted.
        renumber: a method wants the prompt's position ids without gaps.
        extra: (n, L, D) features that ride along to the decoder's first L layers, or None.
        rest: (m, D) all tokens of the view, where prompt entries are to hold mixtures of its picture's; None elsewhere,
            and once a method has acted on the row.
    """

    x: Tensor
    size: Tensor
    position: Tensor
    origin: Tensor
    place: Tensor
    grid: Grid
    whole: bool = True
    stage: str = "input"
    cls: Tensor | None = None
    cls_stays: bool = False
    renumber: bool = False
    extra: Tensor | None = None
    rest: Tensor | None = None

    @property
    def n(self) -> int:
        """Number of tokens."""
        return self.x.shape[0]


@dataclass(frozen=True)
class Riders:
    """What rides along with a group of views (rows, in the decoder) with equal n: `Tokens` without features and
    signals, and where the tokens stand.

    Attributes:
        size, position: (b, n) as in `VisualState`.
        origin: (b, n) as there; in the decoder: the entry of the uncompressed prompt whose place each takes.
        place: (b, n, P) as there; in the decoder: position ids as they are.
        rank: (b, n) int64 index at the stage's entry of the token whose place this one takes; what has none ranks last.
        seed: (b,) int64.
        grid: shared by the group.
        whole: the tokens are the grid.
        renumber: what has acted wants position ids without gaps.
    """

    size: Tensor
    position: Tensor
    origin: Tensor
    place: Tensor
    rank: Tensor
    seed: Tensor
    grid: Grid
    whole: bool = True
    renumber: bool = False

    @property
    def n(self) -> int:
        """Number of tokens in each view."""
        return self.size.shape[1]

    def tokens(self, x: Tensor, signals: dict[str, Tensor], site: int = 0) -> Tokens:
        """The compressor's view of the group: x is (b, n, D)."""
        return Tokens(x, self.size, self.position, self.grid, self.seed, signals, site)

    def at(self, rows: Tensor) -> Riders:
        """Some of the views."""
        names = ("size", "position", "origin", "place", "rank", "seed")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass
class History:
    """The reductions that a group has gone through: (block, reduction), in order; signals of earlier blocks follow."""

    steps: list[tuple[int, Reduction]] = field(default_factory=list)

    def at(self, rows: Tensor) -> History:
        """The history of some of the rows."""
        return History([(layer, rows_of(r, rows)) for layer, r in self.steps])

    def since(self, layer: int) -> list[Reduction]:
        """The reductions in this block or later ones."""
        return [r for at, r in self.steps if at >= layer]


def rows_of(r: Reduction, rows: Tensor) -> Reduction:
    """The reduction of some of the rows."""
    into = None if r.into is None else r.into[rows]
    weight = None if r.weight is None else r.weight[rows]
    return Reduction(r.anchor[rows], into, weight, None, r.grid_out)


def groups(keys: Sequence[Hashable]) -> Iterator[tuple[Hashable, list[int]]]:
    """(key, indices that have it) in order of first appearance."""
    found: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    yield from found.items()


def check_grid(compressor: Compressor, whole: bool, grid: Grid, n: int) -> None:
    """Raises: HostError where a method needs a whole grid and gets a part of one."""
    if compressor.requires_grid and not whole:
        raise HostError(f"{compressor.name}: needs a whole grid; {n} tokens of a {grid[1]} x {grid[2]} grid are left")


def decide(compressor: Reducer, tokens: Tokens, count: int) -> list[tuple[Tensor, Reduction]]:
    """Asks a reducer and checks its answer.

    Returns:
        (rows, reduction) parts, slots as the method ordered them; several where an adaptive method used several counts.

    Raises:
        CountMismatch: too many slots, too few from a method that is not adaptive, or anchors that are no unique tokens.
    """
    reduction = compressor.reduce(tokens, count)
    b, k = reduction.anchor.shape
    if b != tokens.x.shape[0] or k > count or (k < count and not compressor.adaptive):
        raise CountMismatch(f"{compressor.name}: gave {k} slots in {b} rows; asked for {count} in {tokens.x.shape[0]}")
    used = [k] * b if reduction.count is None else reduction.count.tolist()
    if min(used) < 1 or max(used) > k or (not compressor.adaptive and min(used) < k):
        raise CountMismatch(
            f"{compressor.name}: used counts {used} are outside 1..{k}, or differ without being adaptive"
        )
    parts = []
    for slots, rows in groups(used):
        index = torch.tensor(rows, device=reduction.anchor.device)
        part = _first_slots(rows_of(reduction, index), slots)
        ordered = part.anchor.sort(dim=-1).values
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if bool(repeated.any()) or int(ordered.max()) >= tokens.n:
            raise CountMismatch(f"{compressor.name}: anchors are not unique tokens of 0..{tokens.n - 1}")
        parts.append((index, part))
    return parts


def _first_slots(r: Reduction, k: int) -> Reduction:
    """The reduction without its unused slots, which are last."""
    into = None if r.into is None else r.into.masked_fill(r.into >= k, -1)
    return Reduction(r.anchor[:, :k], into, r.weight, None, r.grid_out)


def carried(riders: Riders, r: Reduction, positions: str) -> Riders:
    """Sizes, positions, origins, places and ranks of the slots, in the order of the slots.

    A slot takes its anchor's origin; one without an anchor the last one. Where the decoder rotates by three
    coordinates, a selection keeps its places even under a policy that renumbers.

    Args:
        riders: of the tokens before.
        r: from `decide`, for the same views.
        positions: the method's policy. "mean": a slot's place is the mean of its tokens' places, truncated, in each
            coordinate; else it is its anchor's, until the prompt is numbered anew where the policy is "renumber".
    """
    lost = r.anchor < 0
    anchor = r.anchor.clamp(min=0)
    size = apply_size(r, riders.size)
    last = riders.origin.argmax(dim=1, keepdim=True)
    source = torch.where(lost, last, anchor)
    if positions == "mean":
        number = apply_size(r, torch.ones_like(riders.size)).clamp(min=1e-6)
        sums = [apply_size(r, axis) for axis in riders.place.float().unbind(-1)]
        place = torch.stack([(total / number + 1e-4).long() for total in sums], dim=-1)  # 1e-4: 2.9999998 is a 3
    else:
        place = of_slots(riders.place, source)
    rank = riders.rank.gather(1, anchor).masked_fill(lost, torch.iinfo(torch.int64).max)
    chosen = r.into is None and riders.place.shape[-1] > 1
    made = replace(
        riders,
        size=size,
        position=apply_position(r, riders.position),
        origin=riders.origin.gather(1, source),
        place=place,
        rank=rank,
        whole=False,
        renumber=riders.renumber or (positions == "renumber" and not chosen),
    )
    if r.grid_out is None:
        return made
    index = torch.arange(r.anchor.shape[1], device=anchor.device).expand_as(anchor)
    return replace(made, position=index, grid=r.grid_out, whole=True)


def of_slots(value: Tensor, index: Tensor) -> Tensor:
    """(b, n, P) values at (b, k) indices: (b, k, P)."""
    return value.gather(1, index[..., None].expand(-1, -1, value.shape[-1]))


def leaving(riders: Riders) -> tuple[Riders, Reduction]:
    """The tokens in the order of their ranks, as they leave a stage, and that order as a selection."""
    order = Reduction(riders.rank.argsort(dim=-1, stable=True))
    sorted_ = {name: getattr(riders, name).gather(1, order.anchor) for name in ("size", "position", "origin", "rank")}
    sorted_["place"] = of_slots(riders.place, order.anchor)
    if riders.whole:  # a grid has been put in order by the method
        sorted_["position"] = riders.position
    return replace(riders, **sorted_), order


def carry_signal(kind: str, value: Tensor, steps: Sequence[Reduction]) -> Tensor:
    """A signal of earlier tokens for the slots that they became: attention is summed, keys follow the features.

    Args:
        kind: a key of `compressors.signals.SHAPES`.
        value: (b, ..., n) or, for keys, (b, n, d).
        steps: reductions in order.
    Raises:
        HostError: a map of an earlier block, where anything has gone since.
    """
    if kind == "attention_map" and steps:
        raise HostError("attention_map: a map read in an earlier block does not follow tokens that have gone since")
    for r in steps:
        if kind in VECTORS:
            value = apply(r, value)
        elif value.ndim == 2:
            value = apply_size(r, value)
        else:
            value = torch.stack([apply_size(r, head) for head in value.unbind(1)], dim=1)
    return value


def on_grid(value: Tensor, state: VisualState, grid: Grid) -> Tensor:
    """Values (n,) of a view's tokens at each place of a grid, the least where several places become one; 1 = none."""
    full = value.new_ones(state.grid)
    at = state.position >= 0
    full.view(-1)[state.position[at]] = value[at]
    return full.flatten() if grid == state.grid else -adaptive_max_pool3d(-full[None], grid)[0].flatten()


def stack(states: Sequence[VisualState], seeds: Sequence[int]) -> tuple[Tensor, Riders]:
    """(b, n, D) features and the riders of states with equal n and grid."""
    x = torch.stack([s.x for s in states])
    first = states[0]
    names = ("size", "position", "origin", "place")
    riders = Riders(
        **{name: torch.stack([getattr(s, name) for s in states]) for name in names},
        rank=torch.arange(first.n, device=x.device).expand(len(states), -1),
        seed=torch.tensor(seeds, device=x.device),
        grid=first.grid,
        whole=first.whole,
    )
    return x, riders


def in_one(parts: Sequence[VisualState], grid: Grid) -> VisualState:
    """A video's state from those of its frames, in order; of a picture its own. No CLS speaks for all frames.

    Args:
        parts: of one frame or more.
        grid: of the view when nothing is compressed.
    """
    if len(parts) == 1:
        return parts[0]
    cells, n = parts[0].grid, grid[1] * grid[2]
    alike = all(part.grid == cells for part in parts)
    position, origin = [], []
    for frame, part in enumerate(parts):  # frames of unlike grids: places in the view's own
        place = part.position + frame * cells[1] * cells[2] if alike else part.origin + frame * n
        position.append(torch.where(part.position < 0, -1, place))
        origin.append(part.origin + frame * n)
    more = {"extra": [part.extra for part in parts], "rest": [part.rest for part in parts]}
    return replace(
        parts[0],
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in ("x", "size", "place")},
        **{name: None if any(v is None for v in each) else torch.cat(each) for name, each in more.items()},
        position=torch.cat(position),
        origin=torch.cat(origin),
        grid=(grid[0], *cells[1:]) if alike else grid,
        whole=alike and all(part.whole for part in parts),
        cls=None,
        renumber=any(part.renumber for part in parts),
    )


def unstack(x: Tensor, riders: Riders, stage: str, like: Sequence[VisualState]) -> list[VisualState]:
    """The inverse of `stack`; what a stage does not touch is taken over from `like`."""
    return [
        replace(
            old,
            x=x[i],
            size=riders.size[i],
            position=riders.position[i],
            origin=riders.origin[i],
            place=riders.place[i],
            grid=riders.grid,
            whole=riders.whole,
            stage=stage,
            renumber=old.renumber or riders.renumber,
        )
        for i, old in enumerate(like)
    ]

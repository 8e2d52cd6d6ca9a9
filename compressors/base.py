"""The contract of all compressors: a compressor decides, the host applies.

A compressor is a pure function of its arguments: it holds no state between calls and knows no model. The host calls it on
groups of rows with equal N and equal count, so no padding is ever seen, then applies the answer to features, sizes,
positions, masks and KV alike.

Six bases, one job each: `Selector` (a score), `Reducer` (any `Reduction`), `Resampler` (makes new tokens), `InputKnob`
(image size or frames), `KVReducer` (the cache of one layer), `Streamer` (long video with bounded memory).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.compressors.signals import MissingSignal, Signal

STAGES: tuple[str, ...] = ("input", "encoder", "outside", "projector", "prefill", "decode")
"""Where a decision can be taken, in data-flow order."""

Grid = tuple[int, int, int]
"""(T, H, W) of the visual tokens; an image has T = 1."""


@dataclass(frozen=True)
class Tokens:
    """Visual tokens at one site. B rows, N tokens, D features. Rows of a call have equal N: no padding here.

    Attributes:
        x: (B, N, D) features in the model's dtype.
        size: (B, N) float32, how many original tokens each one stands for.
        position: (B, N) int64, flat index into the grid; -1 = a CLS or summary row (only methods with `takes_cls` see CLS).
        grid: (T, H, W) of the tokens before any compression of this stage.
        seed: (B,) int64 from the input's digest, the only source of randomness.
        signals: kind -> values, shapes in `signals.SHAPES`.
    """

    x: Tensor
    size: Tensor
    position: Tensor
    grid: Grid
    seed: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of tokens in each row."""
        return self.x.shape[1]


@dataclass(frozen=True)
class Reduction:
    """What becomes of N tokens: K slots, linear in the tokens.

    Slot k = sum over (n, j) with into[n, j] == k of weight[n, j] * x[n]. Slots may come in any order: leaving the stage, the host sorts
    them by anchor.

    Attributes:
        anchor: (B, K) int64, the token whose place slot k takes, unique in a row; -1 = no place of its own, goes last.
        into: (B, N, J) int64 slot or -1 (nowhere); None = pure selection of the anchors.
        weight: (B, N, J) float32, with `into`.
        count: (B,) int64 slots really used, for methods that choose their number under the ceiling (unused slots are last).
        grid_out: set where the result is a grid again.
    """

    anchor: Tensor
    into: Tensor | None = None
    weight: Tensor | None = None
    count: Tensor | None = None
    grid_out: Grid | None = None


@dataclass(frozen=True)
class Resampled:
    """New tokens made by a `Resampler`: x (B, K, D), their places in the grid (B, K; -1 = none), and a grid if they form one."""

    x: Tensor
    position: Tensor
    grid_out: Grid | None = None


@dataclass(frozen=True)
class KVCache:
    """The cache of one decoder layer after prefill.

    Attributes:
        keys, values: (B, K, S, e) with K KV heads and S prompt entries; keys carry their rotation.
        visual: (S,) bool, the entries that stand for pixels.
        seed: (B,) int64.
        signals: kind -> values.
    """

    keys: Tensor
    values: Tensor
    visual: Tensor
    seed: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class KVReduction:
    """What becomes of one layer's cache: slot k = sum over s with into[s] == k of weight[s] * entry[s], keys and values alike.

    Attributes:
        keep: (B, K, M) int64 ascending indices of the entries that keep their place.
        into: (B, K, S) int64 slot or -1; None = pure eviction.
        weight: (B, K, S) float32, with `into`.
        count: (B, K) int64 entries really used per head where heads differ; None = M everywhere.
    """

    keep: Tensor
    into: Tensor | None = None
    weight: Tensor | None = None
    count: Tensor | None = None


def scaled(layer: tuple[int, int], depth: int) -> int:
    """A published layer number (layer, depth of the paper's model) on a model of this depth: rounded half up, clamped to 1..depth - 1."""
    number, of = layer
    return max(1, min(depth - 1, int(number * depth / of + 0.5)))


class Compressor(ABC):
    """One method. Subclasses are frozen dataclasses whose fields are hyperparameters; `count` comes with each call.

    Class attributes (read by the registry, the method table, the masks and the tests):
        name, stages: its registry keys are (stage, name).
        kinds: kinds of signal it may ask for, a promise about cost.
        modality: "image", "video" or "both".
        text_guided: its choice depends on the question.
        learned: needs weights for this host.
        adaptive: may return fewer slots than `count`.
        positions: "keep", "renumber" or "mean"; what a decoder sees as position ids (a selection under M-RoPE always keeps).
        proportional: attention after it adds log sizes.
        takes_cls: at `outside`, row 0 of the tokens is the encoder's CLS (position -1) and may be kept.
        requires_grid / emits_grid: needs a whole grid / gives one.
        paper: "Authors, venue, link". fidelity: "reference", "paper" or "reconstruction".
    """

    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]]
    kinds: ClassVar[frozenset[str]] = frozenset()
    modality: ClassVar[str] = "both"
    text_guided: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    positions: ClassVar[str] = "keep"
    proportional: ClassVar[bool] = False
    takes_cls: ClassVar[bool] = False
    requires_grid: ClassVar[bool] = False
    emits_grid: ClassVar[bool] = False
    paper: ClassVar[str]
    fidelity: ClassVar[str]

    def signals(self, depth: int) -> frozenset[Signal]:
        """The signals it reads on an encoder or decoder of this depth."""
        return frozenset()

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        """[(layer, count there)], ascending: before which blocks it acts (`prefill`) or inside which (`encoder`)."""
        return [(depth - 1, count)]

    def reachable(self, grid: Grid) -> Sequence[int]:
        """The counts that it can give on this grid, ascending."""
        return range(1, grid[0] * grid[1] * grid[2] + 1)

    def flops(self, n: int, count: int, dim: int) -> int:
        """Matrix FLOPs (a multiply-add is 2) of its own arithmetic on one row of n tokens with `dim` features, signals apart."""
        return 0

    def check(self, n: int, count: int, signals: Mapping[str, Tensor], needs: frozenset[str] | None = None) -> None:
        """Raises on a count outside 1..n (ValueError) and on a promised signal that is not there (MissingSignal)."""
        if not 1 <= count <= n:
            raise ValueError(f"{self.name}: count {count} is outside 1..{n}")
        for kind in sorted(self.kinds if needs is None else needs):
            if kind not in signals:
                raise MissingSignal(f"{self.name}: the host gave no signal {kind!r}")


class Reducer(Compressor):
    """Any linear reduction of the tokens. `reduce` checks, `plan` decides."""

    def reduce(self, tokens: Tokens, count: int) -> Reduction:
        """The reduction of each row to at most `count` slots. Raises: ValueError, MissingSignal (see `check`)."""
        self.check(tokens.n, count, tokens.signals)
        return self.plan(tokens, count)

    @abstractmethod
    def plan(self, tokens: Tokens, count: int) -> Reduction:
        """The decision itself; arguments are already checked."""


class Selector(Reducer):
    """Keeps the best-scored tokens; equal scores go to the lower index."""

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """(B, N) float32, higher stays."""

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        order = self.score(tokens).float().argsort(dim=-1, descending=True, stable=True)
        return Reduction(anchor=order[:, :count].sort(dim=-1).values)


class Resampler(Compressor):
    """Makes new tokens. `hook`: it runs "before", "after" or "instead" of the host's projector. It has no identity: never asked at ratio 1."""

    hook: ClassVar[str] = "after"

    def resample(self, tokens: Tokens, count: int) -> Resampled:
        """New tokens, at most `count`. Raises: ValueError, MissingSignal, or ValueError where `count` is not reachable."""
        self.check(tokens.n, count, tokens.signals)
        if count not in self.reachable(tokens.grid):
            raise ValueError(f"{self.name}: count {count} is not reachable on grid {tokens.grid}")
        return self.make_tokens(tokens, count)

    @abstractmethod
    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        """The new tokens; arguments are already checked."""


class InputKnob(Compressor):
    """Changes image size or number of frames before anything runs."""

    @abstractmethod
    def target(self, grid: Grid, count: int) -> Grid:
        """The grid to present instead of `grid`, with at most `count` tokens."""

    def reachable(self, grid: Grid) -> Sequence[int]:
        total = grid[0] * grid[1] * grid[2]
        products = ((t * h * w) for t, h, w in (self.target(grid, c) for c in range(1, total + 1)))
        return sorted(set(products))


class KVReducer(Compressor):
    """Shrinks the cache of one layer, after that layer's prefill. Text entries always stay; `count` is visual entries kept per KV head."""

    def reduce(self, cache: KVCache, count: int) -> KVReduction:
        """Which entries stay in each head, and where the others go. Raises: ValueError, MissingSignal."""
        self.check(int(cache.visual.sum()), count, cache.signals)
        return self.plan(cache, count)

    @abstractmethod
    def plan(self, cache: KVCache, count: int) -> KVReduction:
        """The decision itself; arguments are already checked."""


class Streamer(Compressor):
    """Long video with bounded memory: the host feeds windows of frames and keeps only `state`."""

    @abstractmethod
    def start(self, grid: Grid, count: int) -> Any:
        """An empty state for a stream whose memory may hold `count` tokens."""

    @abstractmethod
    def step(self, state: Any, window: Tokens) -> Any:
        """The state after one more window."""

    @abstractmethod
    def finish(self, state: Any) -> Resampled:
        """The tokens that the decoder gets."""


def apply(reduction: Reduction, x: Tensor) -> Tensor:
    """The slots' features: (B, N, D) -> (B, K, D), summed in float32 and returned in x's dtype.

    Also carries sizes ((B, N, 1) with weight 1 where merged): use `apply_size`.
    """
    if reduction.into is None:
        index = reduction.anchor.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return x.gather(1, index)
    return _scatter(reduction, x, reduction.weight)


def apply_size(reduction: Reduction, size: Tensor) -> Tensor:
    """Original tokens that each slot stands for: (B, N) -> (B, K). A token that is spread over J slots is shared equally."""
    if reduction.into is None:
        return size.gather(1, reduction.anchor.clamp(min=0))
    lands = (reduction.into >= 0).float()
    share = lands / lands.sum(-1, keepdim=True).clamp(min=1)
    return _scatter(reduction, size.unsqueeze(-1), share).squeeze(-1)


def _scatter(reduction: Reduction, x: Tensor, weight: Tensor) -> Tensor:
    b, n, d = x.shape
    k = reduction.anchor.shape[1]
    into = reduction.into.masked_fill(reduction.into < 0, k)  # (B, N, J), slot k is the bin
    out = torch.zeros(b, k + 1, d, dtype=torch.float32, device=x.device)
    for j in range(into.shape[-1]):  # J is 1 or 2
        index = into[..., j].unsqueeze(-1).expand(-1, -1, d)
        out.scatter_add_(1, index, weight[..., j].unsqueeze(-1) * x.float())
    return out[:, :k].to(x.dtype)


def in_order(reduction: Reduction) -> Reduction:
    """The same slots sorted by anchor, those without a place last (the order in which they leave a stage)."""
    far = reduction.anchor.max().item() + 1
    order = reduction.anchor.masked_fill(reduction.anchor < 0, far).argsort(dim=-1, stable=True)
    anchor = reduction.anchor.gather(1, order)
    if reduction.into is None:
        return Reduction(anchor, None, None, reduction.count, reduction.grid_out)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    flat = reduction.into.clamp(min=0).flatten(1)
    into = rank.gather(1, flat).view_as(reduction.into).masked_fill(reduction.into < 0, -1)
    return Reduction(anchor, into, reduction.weight, reduction.count, reduction.grid_out)

"""The contract of all compressors: a compressor decides, the host applies.

A compressor is a pure function of its arguments: it holds no state between calls and knows no model. The host calls it
on groups of rows with equal N and equal count, so no padding is ever seen, then applies the answer to features, sizes,
positions, masks and KV alike.

Six bases, one job each: `Selector` (a score), `Reducer` (any `Reduction`), `Resampler` (makes new tokens), `InputKnob`
(image size or frames), `KVReducer` (the cache of one layer), `Streamer` (long video with bounded memory).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from foveate.compressors.signals import OF_ROW, MissingSignal, Signal
from foveate.compressors.tokens import (
    Grid,
    KVCache,
    KVReduction,
    Reduction,
    Resampled,
    Tokens,
    apply,
    apply_kv,
    apply_position,
    apply_size,
    in_order,
    then,
)

__all__ = [
    "ANY_DEPTH",
    "STAGES",
    "Compressor",
    "Grid",
    "InputKnob",
    "KVCache",
    "KVReducer",
    "KVReduction",
    "Reducer",
    "Reduction",
    "Resampled",
    "Resampler",
    "Selector",
    "Streamer",
    "Tokens",
    "apply",
    "apply_kv",
    "apply_position",
    "apply_size",
    "in_order",
    "scaled",
    "then",
]

STAGES: tuple[str, ...] = ("input", "encoder", "outside", "projector", "prefill", "decode")
"""Where a decision can be taken, in data-flow order."""

ANY_DEPTH = 32
"""A depth to ask `signals` for where only the keys matter."""


def scaled(layer: tuple[int, int], depth: int) -> int:
    """A published layer number on a model of this depth: rounded half up, clamped to 1..depth - 1.

    Args:
        layer: (number, depth of the paper's model).
        depth: layers of this model.
    """
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
        positions: "keep", "renumber" or "mean": the decoder's position ids (a selection under M-RoPE always keeps).
        proportional: attention after it, in the same stage, adds the logarithm of how many tokens of the stage's input
            each stands for; from `prefill` on to the end of the answer.
        bypass: at `prefill`: what it does not choose goes around the layer and is there again behind it, where it
            stood. Each of its sites holds until the next one, the last to the end.
        windowed: at `prefill`: visual tokens run through the decoder window by window, each slot is a summary token
            that runs behind its anchor, and of visual tokens these alone stay; `models.windows` says what more is
            asked.
        forgets: at `prefill`, for a selection at one layer: what it drops leaves the caches of the layers before too.
        takes_cls: at `outside` and `projector`, row 0 is the encoder's CLS (position -1) where it has one, counts as a
            token and may be kept.
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
    bypass: ClassVar[bool] = False
    forgets: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    takes_cls: ClassVar[bool] = False
    requires_grid: ClassVar[bool] = False
    emits_grid: ClassVar[bool] = False
    paper: ClassVar[str]
    fidelity: ClassVar[str]

    def signals(self, depth: int) -> frozenset[Signal]:
        """The signals it may read on an encoder or decoder of this depth; their keys are the same for every depth."""
        return frozenset()

    def signals_at(self, site_layer: int, depth: int) -> frozenset[Signal]:
        """Those delivered at one site: for each key, the request in the latest block that is not after the site's."""
        latest: dict[str, Signal] = {}
        for signal in sorted(self.signals(depth), key=lambda signal: signal.layer):
            if signal.layer <= site_layer:
                latest[signal.key] = signal
        return frozenset(latest.values())

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        """[(layer, count there)], ascending: before which blocks it acts (`prefill`) or inside which (`encoder`)."""
        return [(depth - 1, count)]

    def reachable(self, grid: Grid) -> Sequence[int]:
        """The counts that it can give on this grid, ascending."""
        return range(1, grid[0] * grid[1] * grid[2] + 1)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        """Matrix FLOPs (a multiply-add is 2) of its own arithmetic in one call on one row, signals apart.

        A `Reducer`'s include those of applying its reduction to the features, see `tokens.apply_flops`.

        Args:
            n: tokens of the row (at `decode`: visual entries of each head).
            count: how many it is asked for.
            dim: features of a token (at `decode`: of an entry).
            key_dim: width of the `keys` signal.
            heads: KV heads, at `decode`.
            text: entries of each head that are not visual, at `decode`.

        Raises:
            ValueError: the number depends on `key_dim` and none was given.
        """
        return 0

    def flops_on(
        self, grid: Grid, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0
    ) -> int:
        """`flops` of n tokens of a grid: what a host charges. For methods whose products depend on how many frames it
        has, which define this instead."""
        return self.flops(n, count, dim, key_dim=key_dim, heads=heads, text=text)

    def streamed(self) -> Streamer | None:
        """The same method for a video that comes window by window; None where it needs all of it at once."""
        return None

    def check(self, n: int, count: int, signals: Mapping[str, Tensor], rows: int | None = None) -> None:
        """Checks a call once, at the boundary.

        Args:
            n: tokens (visual entries) of each row.
            count: how many are asked for.
            signals: what the host gave.
            rows: length of the axis that every signal of tokens must have; `n` where it is None.

        Raises:
            ValueError: `count` is outside 1..n, or a signal has no axis of that length; one of `OF_ROW`, another shape.
            MissingSignal: a signal that this instance reads is not there.
        """
        if not 1 <= count <= n:
            raise ValueError(f"{self.name}: count {count} is outside 1..{n}")
        rows = n if rows is None else rows
        for key, kind in sorted({(signal.key, signal.kind) for signal in self.signals(ANY_DEPTH)}):
            if key not in signals:
                raise MissingSignal(f"{self.name}: the host gave no signal {key!r}")
            shape, whole = tuple(signals[key].shape), kind in OF_ROW
            if len(shape) != 2 if whole else rows not in shape[1:]:
                wanted = "a vector for each row" if whole else f"{rows} rows"
                raise ValueError(f"{self.name}: signal {key!r} has shape {shape}, wanted {wanted}")


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
    """Makes new tokens; it runs "before", "after" or "instead" of the host's projector. Never asked at ratio 1."""

    hook: ClassVar[str] = "after"

    def resample(self, tokens: Tokens, count: int) -> Resampled:
        """New tokens, at most `count`. Raises: MissingSignal, or ValueError on a `count` that is not reachable."""
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
    """Shrinks the cache of one layer, after that layer's prefill.

    Text entries always stay; `count` is visual entries kept per KV head (where heads or layers differ: their mean).

    Class attributes:
        reselects: the cache stays whole, since what one token of the answer passes over a later one may want: `plan`
            says anew for each token which entries it reads in the layers that `budgets` thins, by the signal
            `answer_attention` of one layer before all these. It is told places and signals alone (one head of width
            0 for all) and multiplies no matrices.
    """

    reselects: ClassVar[bool] = False

    def reduce(self, cache: KVCache, count: int) -> KVReduction:
        """Which entries stay in each head, and where the others go. Raises: ValueError, MissingSignal."""
        self.check(int(cache.visual.sum()), count, cache.signals, rows=cache.visual.shape[0])
        return self.plan(cache, count)

    def budgets(self, n: int, count: int, layer: int, depth: int, heads: int, last: int) -> tuple[int, ...]:
        """Visual entries that each KV head of one layer keeps, known before anything runs; n = the layer is left alone.

        Args:
            n: visual entries of the layer.
            count: the number that the ratio stands for there.
            layer: which layer, from 0.
            depth: of how many.
            heads: KV heads.
            last: visual entries of the last layer, fewer than n where tokens have left between.
        """
        return (count,) * heads

    def stands(self, now: Tensor, before: Tensor) -> Tensor:
        """(B,) bool, whether what was chosen earlier serves one more token; asked where a method `reselects`.

        Args:
            now: (B, n) attention of the token on visual entries, as `answer_attention`; zeros may stand between.
            before: the same of the token before it.
        """
        return now.new_zeros(len(now)).bool()

    @abstractmethod
    def plan(self, cache: KVCache, count: int) -> KVReduction:
        """The decision itself; arguments are already checked."""


class Streamer(Compressor):
    """Long video with bounded memory: the host feeds windows of frames and keeps only `state`.

    How a stream is cut into windows changes nothing. In a pass a video is there whole: it is fed in windows too, and
    what comes out stands behind the projector as new tokens do.
    """

    hook: ClassVar[str] = "after"
    requires_grid: ClassVar[bool] = True
    fed: ClassVar[int] = 16  # frames of a window, where nobody says

    @abstractmethod
    def start(self, grid: Grid, count: int) -> Any:
        """An empty state for a stream (T = 0 where its length is not known) whose memory may hold `count` tokens."""

    @abstractmethod
    def step(self, state: Any, window: Tokens) -> Any:
        """The state after one more window; its grid is its own, its positions count from the stream's first token."""

    @abstractmethod
    def finish(self, state: Any) -> Resampled:
        """The tokens that the decoder gets. The stream may go on behind it: the state stays as it is."""

    def streamed(self) -> Streamer:
        """Itself."""
        return self

    def resample(self, tokens: Tokens, count: int) -> Resampled:
        """A video that is there whole, window by window. Raises: ValueError, MissingSignal (see `check`)."""
        self.check(tokens.n, count, tokens.signals)
        (t, h, w), state = tokens.grid, self.start(tokens.grid, count)
        if tokens.n != t * h * w or count not in self.reachable(tokens.grid):
            raise ValueError(f"{self.name}: count {count} of {tokens.n} tokens is not reachable on grid {tokens.grid}")
        for first in range(0, t, self.fed):
            frames = min(self.fed, t - first)
            part = slice(first * h * w, (first + frames) * h * w)
            x, size, position = tokens.x[:, part], tokens.size[:, part], tokens.position[:, part]
            state = self.step(state, replace(tokens, x=x, size=size, position=position, grid=(frames, h, w)))
        return self.finish(state)

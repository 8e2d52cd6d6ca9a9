"""Visual tokens that run through the decoder window by window, and leave summary tokens behind.

Cuts cannot say this: what stays are entries that the prompt has not, and no layer ever sees all visual tokens. Where a
method is `windowed`, words stay as they are; behind some visual tokens of each window stands a summary token, whose
queries, keys and values are made with what the method adds; and of a window the keys and values of these alone are
kept. Keys are kept without rotation until their place is known: 0, 1, 2 ... over what stays, then the next window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.compressors.base import Reduction
from foveate.models.behind import Continuation
from foveate.models.decoder import Decoder, LayerCache, Stream, hooked
from foveate.models.errors import HostError
from foveate.models.ledger import charge_windows
from foveate.models.prefill import Prefill
from foveate.models.ragged import exists
from foveate.models.visual import carried, decide, groups, rows_of
from foveate.plans.plan import keep_count

if TYPE_CHECKING:
    from foveate.models.acting import Choices
    from foveate.models.inputs import PromptShape
    from foveate.models.passes import Pass

APART = "windows need visual tokens that stand together; here words stand between them"
"""What is said of others."""

Ran = list[tuple[int, int]]
"""(entries that ran, entries kept before them) one call behind the other."""


class Summarises(Protocol):
    """The part of a `windowed` method that is asked while they run; `stops` and `window` say where they end."""

    name: str

    def stops(self, n: int, count: int) -> Sequence[int]:
        """The visual tokens, of n, that summary tokens stand behind: ascending, the last one among them."""

    def window(self, n: int, frames: int) -> int:
        """Visual tokens of one window, of n that show so many frames."""

    def summaries(self, x: Tensor, stops: Sequence[int], end: Tensor) -> Tensor:
        """(B, m, D) the summary tokens behind those at `stops` of a window's visual tokens (B, Q, D), the last one
        among them; `end` (D,) is the embedding of an end token."""

    def added(self, x: Tensor, layer: int, part: str) -> Tensor:
        """What a summary token's "q", "k" or "v" (B, m, width) has more; x (B, m, D) is what the projection reads."""

    def summary_flops(self, count: int) -> int:
        """Matrix FLOPs of `added` for so many summary tokens in all layers."""


def spans(stops: Sequence[int], window: int) -> list[list[int]]:
    """The windows: each one's stops, counted from its own first token.

    A window ends at the last stop among its tokens; one without a stop goes on to the next.

    Args:
        stops: tokens that summary tokens stand behind, ascending.
        window: tokens of a window.
    """
    found, start = [], 0
    for _, members in groups([stop // window for stop in stops]):
        own = [stops[i] for i in members]
        found.append([stop - start for stop in own])
        start = own[-1] + 1
    return found


def ran(before: int, stops: Sequence[int], window: int, behind: int) -> Ran:
    """What runs for a prompt: words before, windows, words behind."""
    out, kept = [(before, 0)] if before else [], before
    for own in spans(stops, window):
        out.append((own[-1] + 1 + len(own), kept))
        kept += len(own)
    return [*out, (behind, kept)] if behind else out


class Windows:
    """Some prompts of one layout on their way through the decoder. Between calls it holds what stays, nothing else.

    Args:
        decoder: the opened model.
        method: whose summary tokens.
        end: (D,) the embedding of a token that ends answers.
        rows: B.

    Attributes:
        caches: of what stays: words and summary tokens.
        last: (B, Q, D) what the last layer made of the entries that ran last.
    """

    def __init__(self, decoder: Decoder, method: Summarises, end: Tensor, rows: int) -> None:
        self.decoder, self.method = decoder, method
        self.end, self.last = end, end.new_zeros(rows, 0, len(end))
        self.caches = []
        for device in decoder.devices:
            keys = torch.zeros(rows, decoder.kv_heads, 0, decoder.head_dim, dtype=end.dtype, device=device)
            none = torch.zeros(rows, dtype=torch.long, device=device)
            self.caches.append(LayerCache(keys, keys, none, none, none, None))

    @property
    def kept(self) -> int:
        """Entries of the longest row that stay."""
        return self.caches[0].keys.shape[2]

    def words(self, x: Tensor, length: Tensor | None = None) -> None:
        """Entries that stay, (B, Q, D), padded on the right where `length` (B,) says so: last before an answer."""
        run = self._behind()
        self.last = run.run(x, length)
        self.caches = run.caches()

    def window(self, x: Tensor, stops: Sequence[int]) -> None:
        """Visual tokens (B, Q, D), summary tokens behind those at `stops`, which ascend to Q - 1."""
        q = x.shape[1]
        order = torch.tensor([2 * i for i in range(q)] + [2 * i + 1 for i in stops]).argsort().to(x.device)
        at = (order >= q).nonzero()[:, 0]
        summaries = self.method.summaries(x, stops, self.end)
        run = self._behind()
        with added(self.decoder, self.method, at) as keys:
            self.last = run.run(torch.cat([x, summaries], dim=1)[:, order])
        kept = self.kept
        for layer, made in enumerate(keys):  # one after the other: what a layer held is let go of at once
            values = run.held[layer].values[:, :, kept:][:, :, at.to(made.device)]
            self.caches[layer], run.held[layer] = self._more(layer, kept, made, values), None

    def _behind(self) -> Continuation:
        return Continuation(self.decoder, self.caches, torch.arange(len(self.last), device=self.decoder.devices[0]))

    def _more(self, layer: int, kept: int, keys: Tensor, values: Tensor) -> LayerCache:
        """A layer's cache with a window's summary tokens behind `kept` entries: keys (B, m, width) as projected, values
        (B, K, m, e)."""
        old, decoder, m = self.caches[layer], self.decoder, keys.shape[1]
        line = torch.arange(kept, kept + m, device=keys.device)
        places = line[None, :, None].expand(len(keys), -1, decoder.coordinates)
        keys = torch.cat([old.keys, decoder.turned(decoder.by_head(layer, keys, "k"), places)], dim=2)
        values = torch.cat([old.values, values], dim=2)
        return replace(old, keys=keys, values=values, length=old.length + m, next_place=old.next_place + m, n=old.n + m)


@contextmanager
def added(decoder: Decoder, method: Summarises, at: Tensor) -> Iterator[list[Tensor]]:
    """The decoder with a method's own queries, keys and values at entries `at` (m,), while this lasts.

    Yields:
        Of each layer that has run: its keys (B, m, width) there, as they were projected.
    """
    keys: list[Tensor] = []

    def make(layer: int, part: str) -> Callable[..., Tensor]:
        def change(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            here = at.to(out.device)
            out = out.index_add(1, here, method.added(given[0][:, here], layer, part))
            if part == "k":
                keys.append(out[:, here])
            return out

        return change

    with ExitStack() as stack:
        for index, layer in enumerate(decoder.layers):
            for part in "qkv":
                stack.enter_context(hooked(getattr(layer.self_attn, f"{part}_proj"), make(index, part)))
        yield keys


def in_windows(of: Pass, choices: Choices) -> tuple[Prefill, Tensor]:
    """The decoder over a pass in which some rows' methods are `windowed`; the others run as ever. Charges the rows.

    Args:
        of: standing before the decoder, or behind layer 0, which windows run anew.
        choices: (method, ratio) of each row.
    Returns:
        The prompts behind the last layer, and logits (B, V).
    Raises:
        HostError: visual tokens that do not stand together.
    """
    start, host, parts = entrance(of.opened), of.host, []
    length, n = start.stream.length.tolist(), start.stream.n.tolist()
    rest, keys = [], {}
    for row, (method, ratio) in enumerate(choices):
        if method is None or not method.windowed or not n[row]:
            rest.append(row)
            continue
        before, frames = _before(of, start, row), frames_of(of.laid[row].shape)
        behind = length[row] > before + n[row]
        keys[row] = (method, keep_count(n[row], ratio), n[row], frames, before, behind)
    if rest:
        other = of.fork(rest)
        other.prefill(*zip(*((choices[row] if n[row] else (None, 1.0)) for row in rest), strict=True))
        parts.append((rest, other.opened, other.logits))
        for row, ledger in zip(rest, other.ledger, strict=True):
            of.ledger[row] = ledger
    end = host.decoder.embed(torch.tensor([min(host.ends)], device=host.device))[0]
    for (method, count, many, frames, before, _), members in groups(list(keys.values())):
        rows = [list(keys)[m] for m in members]
        part = start.at(torch.tensor(rows, device=start.stream.x.device))
        window = method.window(many, frames)
        parts.append((rows, part, _run(part, method, count, window, before, end)))
        for row, entries in zip(rows, part.entries, strict=True):
            calls = ran(before, method.stops(many, count), window, length[row] - before - many)
            charge_windows(of.ledger[row], host.shape, calls, method, count, entries)
    return _joined(parts)


def frames_of(shape: PromptShape) -> int:
    """Frames of all views of a row, whatever has become of their tokens; a picture is one."""
    return sum(t for t, _, _ in shape.grids)


def entrance(run: Prefill) -> Prefill:
    """The prompts as the decoder gets them, whether layer 0 has run or not."""
    if not run.layer:
        return run
    return Prefill(run.decoder, run.caches[0].stream, run.seeds, run.grids, run.whole)


def _before(of: Pass, start: Prefill, row: int) -> int:
    """Entries in front of a row's visual tokens. Raises: HostError where these do not stand together."""
    at = start.stream.visual[row].nonzero()[:, 0].tolist()
    if of.rows[row].shape.before is None or at[-1] - at[0] + 1 != len(at):
        raise HostError(f"row {row}: {APART}")
    return at[0]


def _run(part: Prefill, method: Summarises, count: int, window: int, before: int, end: Tensor) -> Tensor:
    """Runs prompts of one layout, whose stream, caches and books are then those behind the decoder; (b, V) logits."""
    decoder, stream = part.decoder, part.stream
    index = torch.arange(len(part.grids), device=stream.x.device)
    riders, at = part.riders(index)
    ((_, reduction),) = decide(method, riders.tokens(stream.x[index[:, None], at], {}), count)
    run, start = Windows(decoder, method, end, len(index)), before
    if before:
        run.words(stream.x[:, :before])
    for own in spans(reduction.anchor[0].tolist(), window):
        run.window(stream.x[:, start : start + own[-1] + 1], own)
        start += own[-1] + 1
    last = run.last[:, -1]
    if stream.x.shape[1] > start:
        behind = stream.length - start
        run.words(stream.x[:, start:], behind)
        last = run.last[torch.arange(len(index)), behind.to(run.last.device) - 1]
    _close(part, run.caches, reduction, at)
    return decoder.logits(last)


def _close(part: Prefill, caches: Sequence[LayerCache], reduction: Reduction, at: Tensor) -> None:
    """Writes down what is left of prompts: words, and summary tokens where their anchors stood."""
    stream, index = part.stream, torch.arange(len(at), device=at.device)[:, None]
    riders, _ = part.riders(index[:, 0])
    size, stays = stream.size.clone(), exists(stream.length, stream.x.shape[1]) & ~stream.visual
    anchors = at.gather(1, reduction.anchor)
    size[index, anchors], stays[index, anchors] = carried(riders, reduction, "keep").size, True
    length = stays.sum(dim=1)
    order = (~stays).long().argsort(dim=1, stable=True)[:, : int(length.max())]
    close(part, caches, replace(stream, size=size).picked(order, length))
    for row, steps in enumerate(part.history):
        steps.append((0, rows_of(reduction, index[row])))


def close(part: Prefill, caches: Sequence[LayerCache], left: Stream) -> None:
    """Prompts stand behind the last layer, with these caches of the entries that are left, which are numbered anew.

    Nothing is kept of what layers have read: states of all summary tokens would be larger than their keys.
    """
    line = torch.arange(left.place.shape[1], device=left.place.device)[None, :, None].expand_as(left.place)
    part.stream = replace(left, x=left.x[..., :0], place=line, next_place=left.length, weight=None)
    part.caches = [replace(cache, stream=part.stream.to(cache.keys.device)) for cache in caches]
    for row, (entries, n) in enumerate(zip(left.length.tolist(), left.n.tolist(), strict=True)):
        part.entries[row], part.visual[row] = [entries] * len(caches), [n] * len(caches)
        part.whole[row], part.windows[row] = False, True


def _joined(parts: Sequence[tuple[list[int], Prefill, Tensor]]) -> tuple[Prefill, Tensor]:
    """Rows that ran apart as one batch, in order: (rows, prompts, logits) of each part -> prompts and logits."""
    rows, runs, logits = zip(*parts, strict=True)
    if len(runs) == 1:
        return runs[0], logits[0]
    at = torch.tensor([row for own in rows for row in own]).argsort()
    order, stream, seeds = at.tolist(), _streams([run.stream for run in runs], at), [run.seeds for run in runs]
    made = Prefill(runs[0].decoder, stream, _stacked(seeds, at), [], [])
    made.caches = [_caches([run.caches[layer] for run in runs], at) for layer in range(runs[0].layer)]
    for name in ("grids", "whole", "history", "entries", "visual", "windows"):
        every = [value for run in runs for value in getattr(run, name)]
        setattr(made, name, [every[i] for i in order])
    return made, _stacked(list(logits), at)


def _streams(streams: Sequence[Stream], order: Tensor) -> Stream:
    parts = [replace(s, extra=None, weight=torch.ones_like(s.size) if s.weight is None else s.weight) for s in streams]
    names = [f.name for f in fields(Stream) if f.name != "extra"]
    made = {name: _stacked([getattr(s, name) for s in parts], order, int(name == "weight")) for name in names}
    made["weight"] = None if all(s.weight is None for s in streams) else made["weight"]
    return Stream(**made)


def _caches(caches: Sequence[LayerCache], order: Tensor) -> LayerCache:
    names = ("keys", "values", "length", "next_place", "n")
    stream = _streams([cache.stream for cache in caches], order)
    weight = None if stream.weight is None else stream.weight[:, None]
    return LayerCache(
        **{n: _stacked([getattr(c, n) for c in caches], order) for n in names}, stream=stream, weight=weight
    )


def _stacked(values: Sequence[Tensor], order: Tensor, fill: int = 0) -> Tensor:
    """Rows of several tensors behind each other, padded at the end of every other axis, in an order."""
    most, wide = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)], []
    for value in values:
        missing = [full - size for size, full in zip(value.shape[1:], most, strict=True)]
        wide.append(F.pad(value, [width for more in missing[::-1] for width in (0, more)], value=fill))
    return torch.cat(wide)[order.to(values[0].device)]

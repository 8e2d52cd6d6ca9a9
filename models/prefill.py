"""Prefill with cuts: visual tokens leave before the layers that a method names, or go around them; every layer keeps
its own cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, apply, apply_size, in_order
from foveate.models.bypass import Bypass, around
from foveate.models.decoder import Decoder, LayerCache, Stream
from foveate.models.errors import HostError
from foveate.models.glimpse import forget
from foveate.models.ragged import exists
from foveate.models.visual import Riders, carried, check_grid, decide, groups, rows_of


@dataclass(frozen=True)
class Cut:
    """One row's prefill compressor: the method, and the count at each of its layers."""

    compressor: Reducer
    sites: dict[int, int]


@dataclass(frozen=True)
class Slots:
    """What some rows' visual entries become.

    Attributes:
        rows: which rows.
        x, extra, weight: (b, k, D), (b, k, L, D) and (b, k) as in `Stream`, or None.
        riders: what rides along.
    """

    rows: Tensor
    x: Tensor
    extra: Tensor | None
    weight: Tensor | None
    riders: Riders


Signals = Callable[["Prefill", Reducer, Tensor, int], dict[str, Tensor]]


class Prefill:
    """The prompt on its way through the decoder.

    Args:
        decoder: the opened model.
        stream: embedded prompts.
        seeds: (B,) int64.
        grids: of each row's visual tokens.
        whole: whether they are all of it.
    """

    def __init__(
        self, decoder: Decoder, stream: Stream, seeds: Tensor, grids: Sequence[Grid], whole: Sequence[bool]
    ) -> None:
        self.decoder, self.stream, self.seeds = decoder, stream, seeds
        self.grids, self.whole = list(grids), list(whole)
        self.caches: list[LayerCache] = []
        self.history: list[list[tuple[int, Reduction]]] = [[] for _ in grids]
        self.entries: list[list[int]] = [[] for _ in grids]  # of each row: prompt entries in each layer
        self.visual: list[list[int]] = [[] for _ in grids]  # of each row: visual entries in each layer
        self.windows = [False for _ in grids]  # of each row: its visual entries are summary tokens of windows
        self._rotation: tuple[Tensor, Tensor] | None = None
        self._watched: set[int] = set()  # layers of which a method wants what their MLP reads

    @property
    def layer(self) -> int:
        """The layer that runs next."""
        return len(self.caches)

    @property
    def rotation(self) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, e) at the next layer's places."""
        if self._rotation is None:
            self._rotation = self.decoder.rotation(self.stream.x, self.stream.place)
        return self._rotation

    def at(self, rows: Tensor) -> Prefill:
        """Some rows at the same stop; a row may be taken several times."""
        index = rows.tolist()
        other = Prefill(
            self.decoder,
            self.stream.at(rows),
            self.seeds[rows.to(self.seeds.device)],
            [self.grids[i] for i in index],
            [self.whole[i] for i in index],
        )
        other.caches = [c.at(rows) for c in self.caches]
        for name in ("history", "entries", "visual"):
            setattr(other, name, [list(getattr(self, name)[i]) for i in index])
        other.windows = [self.windows[i] for i in index]
        return other

    def step(self, bypass: Bypass | None = None) -> None:
        """Runs the next layer, which some entries may go around."""
        self._arrive()
        watched = self.layer in self._watched
        if bypass is None:
            out, cache = self.decoder.layer(self.layer, self.stream, self.rotation, watched)
        else:
            out, cache = around(self.decoder, self.layer, self.stream, bypass, watched)
        for row, (entries, n) in enumerate(zip(cache.length.tolist(), cache.n.tolist(), strict=True)):
            self.entries[row].append(entries)
            self.visual[row].append(n)
        self.caches.append(cache)
        self.stream = replace(self.stream, x=out)

    def _arrive(self) -> None:
        """Brings the stream to where the next layer runs."""
        device = self.decoder.devices[self.layer]
        if self.stream.x.device != device:
            self.stream, self.seeds, self._rotation = self.stream.to(device), self.seeds.to(device), None

    def finish(self, cuts: Sequence[Cut | None], signals: Signals) -> Tensor:
        """The rest of the layers with each row's cuts; (B, V) logits behind the prompt.

        Raises:
            HostError: a cut before a layer that has already run.
        """
        for cut in cuts:
            if cut is not None and min(cut.sites) < self.layer:
                first = min(cut.sites)
                raise HostError(f"{cut.compressor.name}: cuts before layer {first}, but {self.layer} layers have run")
        asked = (c.compressor.signals_at(site, self.decoder.depth) for c in cuts if c is not None for site in c.sites)
        self._watched = {signal.layer for signals_ in asked for signal in signals_ if signal.kind == "post_norm"}
        while self.layer < self.decoder.depth:
            self.cut(cuts, signals)
            self.step(self._bypass(cuts, signals))
        rows = torch.arange(self.stream.x.shape[0], device=self.stream.x.device)
        return self.decoder.logits(self.stream.x[rows, self.stream.length - 1])

    def cut(self, cuts: Sequence[Cut | None], signals: Signals) -> None:
        """Applies the cuts that stand before the next layer."""
        self._arrive()
        due, made = list(self._due(cuts, bypass=False)), []
        if self.stream.weight is None and any(compressor.proportional for compressor, *_ in due):
            self.stream = replace(self.stream, weight=torch.ones_like(self.stream.size))
        for compressor, rows, site, count in due:
            made += self._reduced(compressor, rows, site, count, signals(self, compressor, rows, self.layer))
        if made:
            self._rebuild(made)
            self._rotation = None
        if forgetting := [rows for compressor, rows, *_ in due if compressor.forgets]:
            self.caches = forget(self.caches, self.stream, torch.cat(forgetting))

    def _due(self, cuts: Sequence[Cut | None], bypass: bool) -> Iterator[tuple[Reducer, Tensor, int, int]]:
        """(method, rows, its site, count) of those that act before the next layer, or on it by leaving tokens out."""
        n = self.stream.n.tolist()
        due = [row for row, c in enumerate(cuts) if c is not None and n[row] > c.sites.get(self.layer, n[row])]
        due = [row for row in due if cuts[row].compressor.bypass == bypass]
        keys = [
            (cuts[r].compressor, n[r], cuts[r].sites[self.layer], self.grids[r], self.whole[r], tuple(self.visual[r]))
            for r in due
        ]
        for (compressor, _, count, *_), members in groups(keys):
            rows = torch.tensor([due[m] for m in members], device=self.stream.x.device)
            yield compressor, rows, sorted(cuts[int(rows[0])].sites).index(self.layer), count

    def _bypass(self, cuts: Sequence[Cut | None], signals: Signals) -> Bypass | None:
        """Who runs through the next layer; None = all."""
        s, found = self.stream, None
        for compressor, rows, site, count in self._due(cuts, bypass=True):
            if found is None:
                found = Bypass(exists(s.length, s.x.shape[1]), torch.ones_like(s.size))
            riders, index = self.riders(rows)
            check_grid(compressor, riders.whole, riders.grid, riders.n)
            given = signals(self, compressor, rows, self.layer)
            stays, scale = found.stays, found.scale
            tokens = riders.tokens(s.x[rows[:, None], index], given, site)
            for part, reduction in decide(compressor, tokens, count):
                row, own = rows[part][:, None], index[part]
                stays[row, own] = False
                stays[row, own.gather(1, reduction.anchor)] = True
                if reduction.weight is not None:
                    scale = scale.index_put((row, own), reduction.weight[..., 0])  # it may carry gradients
            found = Bypass(stays, scale)
        return found

    def riders(self, rows: Tensor) -> tuple[Riders, Tensor]:
        """What rides along with the visual entries of rows with equal n, and their indices (b, n)."""
        first = int(rows[0])
        s, index = self.stream, visual_index(self.stream, rows)
        at = (rows[:, None], index)
        riders = Riders(
            **{name: getattr(s, name)[at] for name in ("size", "position", "place")},
            origin=s.entry[at],
            rank=torch.arange(index.shape[1], device=rows.device).expand_as(index),
            seed=self.seeds[rows],
            grid=self.grids[first],
            whole=self.whole[first],
        )
        return riders, index

    def _reduced(
        self, compressor: Reducer, rows: Tensor, site: int, count: int, signals: dict[str, Tensor]
    ) -> list[Slots]:
        s, (riders, index) = self.stream, self.riders(rows)
        at = (rows[:, None], index)
        check_grid(compressor, riders.whole, riders.grid, riders.n)
        x, extra, slots = s.x[at], None if s.extra is None else s.extra[at], []
        for part, reduction in decide(compressor, riders.tokens(x, signals, site), count):
            reduction = in_order(reduction)  # at every site: in a causal model the order is part of the meaning
            kept = carried(riders.at(part), reduction, compressor.positions)
            levels = None if extra is None else apply(reduction, extra[part].flatten(2)).unflatten(2, extra.shape[2:])
            weight = None if s.weight is None else torch.ones_like(kept.size)
            if compressor.proportional:
                weight = apply_size(reduction, s.weight[at][part])
            slots.append(Slots(rows[part], apply(reduction, x[part]), levels, weight, kept))
            for number, row in enumerate(rows[part].tolist()):
                self.history[row].append((self.layer, rows_of(reduction, torch.tensor([number], device=rows.device))))
                self.grids[row], self.whole[row] = kept.grid, kept.whole
        return slots

    def _rebuild(self, made: Sequence[Slots]) -> None:
        """The stream with visual entries replaced by slots, in the order of entries, padded on the right again."""
        s = self.stream
        b, width = s.entry.shape
        most = max(m.x.shape[1] for m in made)
        fresh = {name: s_of.new_zeros(b, most, *s_of.shape[2:]) for name, s_of in _carried(s)}
        gone = torch.iinfo(torch.int64).max  # sorts last
        entry = s.entry.new_full((b, most), gone)
        cut, renumber = (torch.zeros(b, dtype=torch.bool, device=s.x.device) for _ in range(2))
        for m in made:
            k = m.x.shape[1]
            values = {"x": m.x, "extra": m.extra, "weight": m.weight, "visual": True}
            for name, value in fresh.items():
                value[m.rows, :k] = values[name] if name in values else getattr(m.riders, name)
            entry[m.rows, :k], cut[m.rows], renumber[m.rows] = m.riders.origin, True, m.riders.renumber
        behind = torch.arange(width, device=s.x.device)[None] >= s.length[:, None]
        old = s.entry.masked_fill(behind | (s.visual & cut[:, None]), gone)
        everything = torch.cat([old, entry], dim=1)
        length = (everything < gone).sum(dim=1)
        order = everything.argsort(dim=1, stable=True)[:, : int(length.max())]
        joined = {name: torch.cat([getattr(s, name), value], 1) for name, value in fresh.items()}
        kept = replace(s, entry=everything, **joined).picked(order, length)
        line = torch.arange(order.shape[1], device=order.device)[None]
        place = torch.where(renumber[:, None, None], line[..., None], kept.place)
        self.stream = replace(kept, place=place, next_place=torch.where(renumber, length, s.next_place))


def _carried(s: Stream) -> list[tuple[str, Tensor]]:
    """The parts of a stream that follow its entries, but `entry` itself."""
    names = ("x", "place", "visual", "size", "position", "extra", "weight")
    return [(name, getattr(s, name)) for name in names if getattr(s, name) is not None]


def visual_index(stream: Stream, rows: Tensor) -> Tensor:
    """(b, n) indices of the visual entries of rows with equal n."""
    return stream.visual[rows].nonzero()[:, 1].view(len(rows), -1)

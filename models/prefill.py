"""Prefill with cuts: visual tokens leave before the layers that a method names; every layer keeps its own cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, apply, in_order
from foveate.models.decoder import Decoder, LayerCache, Stream
from foveate.models.errors import HostError
from foveate.models.visual import Riders, carried, check_grid, decide, groups, rows_of


@dataclass(frozen=True)
class Cut:
    """One row's prefill compressor: the method, and the count at each of its layers."""

    compressor: Reducer
    sites: dict[int, int]


@dataclass(frozen=True)
class Slots:
    """What some rows' visual blocks become: x (b, k, D), size, position and place (b, k), or a renumbered row."""

    rows: Tensor
    x: Tensor
    riders: Riders
    renumber: bool


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
        self._rotation: tuple[Tensor, Tensor] | None = None

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
            self.seeds[rows],
            [self.grids[i] for i in index],
            [self.whole[i] for i in index],
        )
        other.caches = [c.at(rows) for c in self.caches]
        for name in ("history", "entries", "visual"):
            setattr(other, name, [list(getattr(self, name)[i]) for i in index])
        return other

    def step(self) -> None:
        """Runs the next layer."""
        out, cache = self.decoder.layer(self.layer, self.stream, self.rotation)
        for row, (entries, n) in enumerate(zip(self.stream.length.tolist(), self.stream.n.tolist(), strict=True)):
            self.entries[row].append(entries)
            self.visual[row].append(n)
        self.caches.append(cache)
        self.stream = replace(self.stream, x=out)

    def finish(self, cuts: Sequence[Cut | None], signals: Signals) -> Tensor:
        """The rest of the layers with each row's cuts; (B, V) logits behind the prompt.

        Raises:
            HostError: a cut before a layer that has already run.
        """
        for cut in cuts:
            if cut is not None and min(cut.sites) < self.layer:
                first = min(cut.sites)
                raise HostError(f"{cut.compressor.name}: cuts before layer {first}, but {self.layer} layers have run")
        while self.layer < self.decoder.depth:
            self.cut(cuts, signals)
            self.step()
        rows = torch.arange(self.stream.x.shape[0], device=self.stream.x.device)
        return self.decoder.logits(self.stream.x[rows, self.stream.length - 1])

    def cut(self, cuts: Sequence[Cut | None], signals: Signals) -> None:
        """Applies the cuts that stand before the next layer."""
        n = self.stream.n.tolist()
        due = [row for row, c in enumerate(cuts) if c is not None and n[row] > c.sites.get(self.layer, n[row])]
        keys = [
            (cuts[r].compressor, n[r], cuts[r].sites[self.layer], self.grids[r], self.whole[r], tuple(self.visual[r]))
            for r in due
        ]
        made = []
        for (compressor, _, count, *_), members in groups(keys):
            rows = torch.tensor([due[m] for m in members], device=self.stream.x.device)
            site = sorted(cuts[int(rows[0])].sites).index(self.layer)
            made += self._reduced(compressor, rows, site, count, signals(self, compressor, rows, self.layer))
        if made:
            self._rebuild(made)
            self._rotation = None

    def _reduced(
        self, compressor: Reducer, rows: Tensor, site: int, count: int, signals: dict[str, Tensor]
    ) -> list[Slots]:
        first = int(rows[0])
        s, n, index = self.stream, int(self.stream.n[first]), visual_index(self.stream, rows)
        x = s.x[rows[:, None], index]
        part = {name: getattr(s, name)[rows[:, None], index] for name in ("size", "position", "place")}
        part["rank"] = torch.arange(n, device=rows.device).expand_as(index)
        riders = Riders(**part, seed=self.seeds[rows], span=s.n[rows], grid=self.grids[first], whole=self.whole[first])
        check_grid(compressor, riders.whole, riders.grid, n)
        slots = []
        for at, reduction in decide(compressor, riders.tokens(x, signals, site), count):
            reduction = in_order(reduction)  # at every site: in a causal model the order is part of the meaning
            kept = carried(riders.at(at), reduction, compressor.positions)
            slots.append(Slots(rows[at], apply(reduction, x[at]), kept, compressor.positions == "renumber"))
            for number, row in enumerate(rows[at].tolist()):
                self.history[row].append((self.layer, rows_of(reduction, torch.tensor([number], device=rows.device))))
                self.grids[row], self.whole[row] = kept.grid, kept.whole
        return slots

    def _rebuild(self, made: Sequence[Slots]) -> None:
        """The stream with visual blocks replaced by slots, rows closed up and padded on the right again."""
        s = self.stream
        b, width, dim = s.x.shape
        most = max(m.x.shape[1] for m in made)
        x = s.x.new_zeros(b, most, dim)
        riders = {name: getattr(s, name).new_zeros(b, most) for name in ("size", "position", "place")}
        n, renumber = s.n.clone(), torch.zeros(b, dtype=torch.bool, device=s.x.device)
        cut = torch.zeros_like(renumber)
        for m in made:
            k = m.x.shape[1]
            x[m.rows, :k] = m.x
            for name, value in riders.items():
                value[m.rows, :k] = getattr(m.riders, name)
            n[m.rows], cut[m.rows], renumber[m.rows] = k, True, m.renumber
        length = s.length - s.n + n
        at = torch.arange(int(length.max()), device=s.x.device)[None]
        start, old, new = s.start[:, None], s.n[:, None], n[:, None]
        moved = torch.where(at < start, at, torch.where(at < start + new, width + at - start, at - new + old))
        index = torch.where(cut[:, None], moved, at).masked_fill(at >= length[:, None], 0)
        joined = {name: torch.cat([getattr(s, name), value], 1).gather(1, index) for name, value in riders.items()}
        joined["place"] = torch.where(renumber[:, None], at, joined["place"])
        self.stream = Stream(
            x=torch.cat([s.x, x], 1).gather(1, index[..., None].expand(-1, -1, dim)),
            length=length,
            next_place=torch.where(renumber, length, s.next_place),
            start=s.start,
            n=n,
            **joined,
        )


def visual_index(stream: Stream, rows: Tensor) -> Tensor:
    """(b, n) indices of the visual entries of rows with equal n."""
    return stream.start[rows][:, None] + torch.arange(int(stream.n[rows[0]]), device=rows.device)

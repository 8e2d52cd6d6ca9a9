"""What methods of the stage `decode` see of a layer's cache, and the signals that they may read there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.compressors.base import KVCache, KVReducer
from foveate.compressors.signals import RECENT, Signal
from foveate.models.decoder import LayerCache
from foveate.models.decoder_signals import received
from foveate.models.errors import HostError
from foveate.models.ledger import received_flops

if TYPE_CHECKING:
    from foveate.models.passes import Pass

OWN_KINDS = ("accumulated_attention", "recent_attention", "survivors")
"""Signals that each layer gives of itself."""

DECODE_KINDS = (*OWN_KINDS, "frame_relevance")


def asked_at(method: KVReducer, layer: int, depth: int, windows: bool = False) -> list[Signal]:
    """What a method reads in one layer; nothing can be read behind windows, which leave no states of the prompt.

    Raises: HostError on what there is not at `decode`, or not there.
    """
    asked = sorted(method.signals(depth), key=lambda signal: (signal.key, signal.layer))
    if wrong := sorted({s.key for s in asked if s.kind not in DECODE_KINDS}):
        raise HostError(f"{method.name}: asks for {', '.join(wrong)}; at decode there is {', '.join(DECODE_KINDS)}")
    if windows and asked:
        raise HostError(f"{method.name}: reads {asked[0].key} of the prompt, of which windows leave nothing to read")
    return [s for s in asked if s.kind not in OWN_KINDS or s.layer in (layer, -1)]


def queries_of(kind: str, n: int) -> int:
    """Prompt queries of n that a signal runs anew."""
    return {"accumulated_attention": n, "survivors": 0}.get(kind, min(RECENT, n))


class Reader:
    """The caches behind the prompt as methods see them; signals are charged to the rows.

    Args:
        of: the pass.
        caches: one for each layer, with their inputs.
    """

    def __init__(self, of: Pass, caches: Sequence[LayerCache]) -> None:
        self.of, self.caches = of, caches
        self._relevance: dict[tuple[int, int], Tensor] = {}  # (row, layer) -> of each frame

    def standing(self, layer: int, row: int) -> tuple[bytes, bytes]:
        """What rows of one call have in common: where visual entries stand, and their frames."""
        stream, s = self.caches[layer].stream, int(self.caches[layer].length[row])
        frame = self._frame(layer, row)
        return tuple(b"" if x is None else x.cpu().numpy().tobytes() for x in (stream.visual[row, :s], frame))

    def view(self, method: KVReducer, layer: int, rows: Tensor) -> KVCache:
        """The cache of one layer for rows of one standing, with the signals that a method asks for."""
        cache, first = self.caches[layer], int(rows[0])
        s = int(cache.length[first])
        seeds = torch.tensor([self.of.rows[r].seed for r in rows.tolist()], device=rows.device)
        windows = self.of.opened.windows[first]
        asked = asked_at(method, layer, self.of.host.decoder_depth, windows)
        signals = {signal.key: self._signal(signal, layer, rows) for signal in asked}
        keys, values = cache.keys[rows, :, :s], cache.values[rows, :, :s]
        return KVCache(keys, values, cache.stream.visual[first, :s], seeds, signals, layer, self._frame(layer, first))

    def _frame(self, layer: int, row: int) -> Tensor | None:
        """(S,) int64 frames of a row's entries, see `KVCache.frame`; None where there is one only."""
        t, h, w = self.of.opened.grids[row]
        if t == 1:
            return None
        stream, s = self.caches[layer].stream, int(self.caches[layer].length[row])
        at = stream.position[row, :s]
        return torch.where(stream.visual[row, :s] & (at >= 0), at // (h * w), -1)

    def _signal(self, signal: Signal, layer: int, rows: Tensor) -> Tensor:
        if signal.kind == "survivors":
            return self._survivors(layer, rows)
        if signal.kind == "frame_relevance":
            return torch.stack([self._of_frames(signal.layer, layer, row) for row in rows.tolist()])
        return self._received(signal.kind, layer, rows)

    def _received(self, kind: str, layer: int, rows: Tensor) -> Tensor:
        """(b, K, S) attention that keys received from prompt queries: the sum over all, the mean over recent ones."""
        cache, decoder = self.caches[layer], self.of.host.decoder
        s = int(cache.length[int(rows[0])])
        queries = queries_of(kind, s)
        for row in rows.tolist():
            flops = received_flops(self.of.host.shape.decoder, s, queries)
            self.of.ledger[row].add("decode", "signals", flops)
        total = received(decoder, cache, layer, rows, s - queries)
        return total if kind == "accumulated_attention" else total / (queries * (decoder.heads // decoder.kv_heads))

    def _survivors(self, layer: int, rows: Tensor) -> Tensor:
        """(b, S) float32, 1 where the last layer still has the entry."""
        found, s = [], int(self.caches[layer].length[int(rows[0])])
        for row in rows.tolist():
            last, here = self.caches[-1].stream, self.caches[layer].stream
            left = last.entry[row, : int(last.length[row])].to(here.entry.device)
            found.append(torch.isin(here.entry[row, :s], left).float())
        return torch.stack(found)

    def _of_frames(self, at: int, layer: int, row: int) -> Tensor:
        """(S,) float32: mean attention of the recent queries, in layer `at`, on the entries of each entry's frame."""
        if (row, at) not in self._relevance:
            rows = torch.tensor([row], device=self.caches[at].keys.device)
            value = self._received("recent_attention", at, rows)[0].mean(0)
            frame, frames = self._seen(at, row), self.of.opened.grids[row][0]
            kept = frame >= 0
            total, number = (
                value.new_zeros(frames).index_add_(0, frame[kept], x[kept]) for x in (value, torch.ones_like(value))
            )
            self._relevance[row, at] = total / number.clamp(min=1)
        frame, found = self._seen(layer, row), self._relevance[row, at]
        found = found.to(frame.device)
        return found[frame.clamp(min=0)].masked_fill(frame < 0, 0)

    def _seen(self, layer: int, row: int) -> Tensor:
        """Frames of a row's entries, 0 for all visual ones where there is one frame only."""
        frame = self._frame(layer, row)
        if frame is not None:
            return frame
        visual = self.caches[layer].stream.visual[row, : int(self.caches[layer].length[row])]
        return visual.long() - 1

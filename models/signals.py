"""Signals, recomputed from what a pass keeps: block inputs of the tower, layer inputs and caches of the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveate.compressors.base import Compressor, Grid
from foveate.compressors.signals import FEATURE_LAYER, Signal
from foveate.models.decoder import Decoder, LayerCache, Stream
from foveate.models.ledger import query_rows_of
from foveate.models.prefill import Prefill, visual_index
from foveate.models.tower import BlockInput, Tower

ATTENTION_KINDS = ("cls_attention", "received_attention", "attention_map", "keys")
QUERIES = 512
"""How many queries of a tower are held at a time: a large picture has tens of thousands of patches."""


def by_layer(compressor: Compressor, depth: int, now: int, kinds: Sequence[str]) -> dict[int, list[Signal]]:
    """What a method standing in (or behind) block `now` reads of these kinds, by block; `FEATURE_LAYER` is `now`."""
    out: dict[int, list[Signal]] = {}
    for signal in sorted(compressor.signals_at(now, depth), key=lambda s: s.key):
        if signal.kind in kinds:
            out.setdefault(now if signal.layer == FEATURE_LAYER else signal.layer, []).append(signal)
    return out


def tower_attention(
    tower: Tower, layer: int, kept: BlockInput, kinds: Sequence[str], grid: Grid
) -> tuple[Tensor | None, Tensor]:
    """Queries (those that the kinds need) and keys (b, H, ., e) of a block, from its input."""
    rows = query_rows_of(kinds, kept.x.shape[1], tower.has_cls)
    return tower.queries_keys(layer, kept.x, rows, grid)


def tower_signal(
    tower: Tower, kind: str, layer: int, q: Tensor | None, k: Tensor, bias: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor]:
    """One signal of a block: its CLS entry (empty without CLS) and its tokens; shapes as in `compressors.signals`.

    A tower without CLS gives the attention received, as one head, for CLS attention.

    Args:
        tower: whose.
        kind: one of `ATTENTION_KINDS`.
        layer: the block.
        q: (b, H, ., e) queries, CLS first.
        k: (b, H, c + m, e) keys.
        bias: (b, c + m) added to the logits, or None.
        grid: of the views' tokens when nothing is compressed.
    """
    cls, patches = without_cls(kind, _of_patches(tower, kind, layer, q, k, bias, grid), tower.first)
    return cls, patches if tower.merge == 1 else tower.folded(kind, patches, grid)


def _of_patches(
    tower: Tower, kind: str, layer: int, q: Tensor | None, k: Tensor, bias: Tensor | None, grid: Grid
) -> Tensor:
    """One signal over all rows of a block, CLS included."""
    if kind == "keys":
        return k.mean(dim=1)
    if kind == "cls_attention" and tower.has_cls:
        return _attention(tower, layer, q[:, :, :1], k, bias, grid, 0)[:, :, 0]
    parts = q.split(QUERIES, dim=2)
    if kind == "attention_map":
        maps = [_attention(tower, layer, p, k, bias, grid, i * QUERIES).mean(1) for i, p in enumerate(parts)]
        return torch.cat(maps, dim=1)
    sums = [_attention(tower, layer, p, k, bias, grid, i * QUERIES).sum(dim=(1, 2)) for i, p in enumerate(parts)]
    received = sum(sums) / (q.shape[1] * q.shape[2])
    return received[:, None] if kind == "cls_attention" else received


def _attention(tower: Tower, layer: int, q: Tensor, k: Tensor, bias: Tensor | None, grid: Grid, first: int) -> Tensor:
    """Attention of some queries, from the `first` on, to all rows of a block: (b, H, queries, c + m) float32."""
    logits = (q @ k.transpose(-1, -2)).float() * tower.scale
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    windows = tower.windows(layer, grid)
    if windows is not None:
        logits = logits.masked_fill(windows[first : first + q.shape[2], None] != windows[None], float("-inf"))
    return logits.softmax(-1)


def without_cls(kind: str, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """A signal's CLS entry (empty for a tower without, and for a map) and its patch entries."""
    if kind == "attention_map":
        return value[:, first:, :0], value[:, first:, first:]
    axis = 1 if kind == "keys" else -1
    return value.narrow(axis, 0, first), value.narrow(axis, first, value.shape[axis] - first)


def last_query(decoder: Decoder, stream: Stream, cache: LayerCache | None, layer: int, rows: Tensor) -> Tensor:
    """The last prompt token's attention on each visual entry: (b, H, n) float32, softmax over all entries of the layer.

    Args:
        decoder: the opened model.
        stream: the layer's input.
        cache: the layer's cache where it has run, else None (keys are then computed).
        layer: which layer.
        rows: (b,) rows with equal n.
    """
    last = stream.length[rows] - 1
    q = decoder.rotated(layer, stream.x[rows, last][:, None], stream.place[rows, last][:, None], "q")
    k = decoder.rotated(layer, stream.x[rows], stream.place[rows], "k") if cache is None else cache.keys[rows]
    logits = (q.unflatten(1, (decoder.kv_heads, -1))[:, :, :, 0] @ k.transpose(-1, -2)).float()
    logits = logits * decoder.layers[layer].self_attn.scaling
    padding = torch.arange(k.shape[2], device=k.device)[None] >= stream.length[rows][:, None]
    attention = logits.flatten(1, 2).masked_fill(padding[:, None], float("-inf")).softmax(-1)
    index = visual_index(stream, rows)
    return attention.gather(2, index[:, None].expand(-1, attention.shape[1], -1))


def visual_keys(decoder: Decoder, stream: Stream, cache: LayerCache | None, layer: int, rows: Tensor) -> Tensor:
    """Keys of each visual entry in one layer: (b, n, e), rotated as cached, mean over KV heads. Arguments as above."""
    index = visual_index(stream, rows)
    if cache is None:
        at = rows[:, None]
        return decoder.rotated(layer, stream.x[at, index], stream.place[at, index], "k").mean(1)
    keys = cache.keys[rows].mean(1)
    return keys.gather(1, index[..., None].expand(-1, -1, keys.shape[-1]))


DECODER_KINDS = {"last_query": last_query, "visual_keys": visual_keys}
"""Kind of signal in the decoder -> what computes it."""


def last_state_attention(prefill: Prefill, row: int) -> np.ndarray:
    """The last prompt token's attention in layer 0, which alone has run: (entries,) float32, mean over heads.

    What `last_query` gives for one row, in numpy: a look at a small model must not cost as many calls as a layer.
    """
    decoder, cache, last = prefill.decoder, prefill.caches[0], prefill.entries[row][0] - 1
    block = decoder.layers[0]
    q = read(cache.stream.x[row, last], block.input_layernorm, block.self_attn.q_proj).reshape(decoder.heads, -1)
    if (norm := getattr(block.self_attn, "q_norm", None)) is not None:
        q = q * numbers(norm.weight.detach()) / np.sqrt(np.vecdot(q, q) / q.shape[1] + norm.variance_epsilon)[:, None]
    half = q.shape[1] // 2
    cos, sin = (numbers(part)[row, last] for part in prefill.rotation)
    q = q * cos + np.concatenate([-q[:, half:], q[:, :half]], axis=1) * sin
    k = numbers(cache.keys[row])[:, : last + 1]
    logits = q.reshape(decoder.kv_heads, -1, 2 * half) @ k.transpose(0, 2, 1)
    return mean_softmax(logits.reshape(decoder.heads, -1), block.self_attn.scaling)


def read(state: Tensor, norm: nn.Module, linear: nn.Linear) -> np.ndarray:
    """linear(norm(state)) of one state (D,) of the decoder, whose norms are RMS norms: float32."""
    if state.dtype != torch.float32 or any(x.device.type != "cpu" for x in (state, norm.weight)):
        return numbers(linear(norm(state)))
    x = numbers(state)
    x = x * norm.weight.detach().numpy() / math.sqrt(x @ x / len(x) + norm.variance_epsilon)
    y = linear.weight.detach().numpy() @ x
    return y if linear.bias is None else y + linear.bias.detach().numpy()


def mean_softmax(logits: np.ndarray, scale: float) -> np.ndarray:
    """(H, n) -> (n,): mean over heads of softmax(logits * scale)."""
    weight = np.exp((logits - np.maximum.reduce(logits, axis=1, keepdims=True)) * np.float32(scale))
    return (1 / (len(weight) * np.add.reduce(weight, axis=1))) @ weight


def numbers(x: Tensor) -> np.ndarray:
    """A tensor as float32 numbers on the CPU; a view where it already is that."""
    return x.float().cpu().numpy()


def accumulated_attention(decoder: Decoder, cache: LayerCache, layer: int, rows: Tensor, chunk: int = 256) -> Tensor:
    """Attention that each cached key received from all prompt queries and its group's heads: (b, K, S) float32.

    Args:
        decoder: the opened model.
        cache: the layer's, with its input.
        layer: which layer.
        rows: (b,) rows of equal length.
        chunk: queries at a time.
    """
    s = int(cache.length[rows[0]])
    x, place = cache.stream.x[rows, :s], cache.stream.place[rows, :s]
    q = decoder.rotated(layer, x, place, "q").unflatten(1, (decoder.kv_heads, -1))
    k = cache.keys[rows, :, None, :s].transpose(-1, -2)
    out = torch.zeros(len(rows), decoder.kv_heads, s, device=x.device)
    index = torch.arange(s, device=x.device)
    for first in range(0, s, chunk):
        logits = (q[:, :, :, first : first + chunk] @ k).float() * decoder.layers[layer].self_attn.scaling
        ahead = index[None] > index[first : first + chunk, None]
        out += logits.masked_fill(ahead, float("-inf")).softmax(-1).sum(dim=(2, 3))
    return out

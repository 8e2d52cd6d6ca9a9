"""Signals of the tower, recomputed from the block inputs that a pass keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveate.compressors.base import Compressor, Grid
from foveate.compressors.signals import FEATURE_LAYER, VECTORS, Signal
from foveate.models.ledger import query_rows_of
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


def of_frames(kind: str, parts: Sequence[Tensor]) -> Tensor:
    """A signal of a video from those of its frames, each without a batch axis; of a picture its own."""
    if len(parts) == 1:
        return parts[0]
    if kind == "attention_map":
        return torch.block_diag(*parts)
    return torch.cat(list(parts), dim=0 if kind in VECTORS else -1)


def without_cls(kind: str, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """A signal's CLS entry (empty for a tower without, and for a map) and its patch entries."""
    if kind == "attention_map":
        return value[:, first:, :0], value[:, first:, first:]
    axis = 1 if kind == "keys" else -1
    return value.narrow(axis, 0, first), value.narrow(axis, first, value.shape[axis] - first)


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

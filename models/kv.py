"""Shrinking the cache behind the prompt, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.compressors.base import KVCache, KVReducer, KVReduction, apply_kv
from foveate.models.decoder import LayerCache
from foveate.models.decoder_signals import accumulated_attention
from foveate.models.errors import CountMismatch, HostError
from foveate.models.ledger import accumulated_flops, method_flops
from foveate.models.visual import groups
from foveate.plans.plan import keep_count

if TYPE_CHECKING:
    from foveate.models.passes import Pass


Choices = Sequence[tuple[KVReducer | None, float]]


def shrink(of: Pass, caches: Sequence[LayerCache], choices: Choices) -> list[LayerCache]:
    """Each layer's cache after each row's method; text entries stay. Charges the rows' ledgers.

    Args:
        of: the pass.
        caches: one for each layer.
        choices: each row's method (None = untouched) and the ratio of visual entries that it keeps.
    Raises:
        CountMismatch: a method that keeps other entries than it may. HostError: heads that keep different numbers.
    """
    return [_layer(of, layer, cache, choices) for layer, cache in enumerate(caches)]


def _layer(of: Pass, layer: int, cache: LayerCache, choices: Choices) -> LayerCache:
    length, n, visible = cache.length.tolist(), cache.n.tolist(), cache.stream.visual
    counts = [keep_count(n[row], ratio) if n[row] else 0 for row, (_, ratio) in enumerate(choices)]
    due = [row for row, (method, _) in enumerate(choices) if method is not None and counts[row] < n[row]]
    if not due:
        return cache
    keys, values = cache.keys.clone(), cache.values.clone()
    new_length, new_n = cache.length.clone(), cache.n.clone()
    weight = None if cache.weight is None else cache.weight.expand(-1, keys.shape[1], -1).clone()
    stand = {r: visible[r].cpu().numpy().tobytes() for r in due}
    shared = groups([(choices[r][0], counts[r], length[r], n[r], stand[r]) for r in due])
    for (method, count, s, many, _), members in shared:
        rows = torch.tensor([due[m] for m in members], device=keys.device)
        visual = visible[rows[0], :s]
        signals = _signals(of, method, cache, layer, rows)
        seeds = torch.tensor([of.rows[r].seed for r in rows.tolist()], device=keys.device)
        view = KVCache(cache.keys[rows, :, :s], cache.values[rows, :, :s], visual, seeds, signals, layer)
        reduction = method.reduce(view, count)
        kept = _checked(method, reduction, view, count)
        for row in rows.tolist():
            of.ledger[row].add(
                "decode", method.name, method_flops(method, of.host.shape, "decode", many, count, s - many)
            )
        keys[rows, :, :kept] = apply_kv(reduction, view.keys)
        values[rows, :, :kept] = apply_kv(reduction, view.values)
        if weight is not None:  # an entry counts for what it counted for
            weight[rows, :, :kept] = weight[rows].gather(-1, reduction.keep)
        new_length[rows], new_n[rows] = kept, kept - (s - many)
    longest = int(new_length.max())
    weight = None if weight is None else weight[:, :, :longest]
    return LayerCache(keys[:, :, :longest], values[:, :, :longest], new_length, cache.next_place, new_n, None, weight)


def _signals(of: Pass, method: KVReducer, cache: LayerCache, layer: int, rows: Tensor) -> dict[str, Tensor]:
    """What the method reads in this layer."""
    asked = method.signals_at(layer, of.host.decoder_depth)
    wrong = sorted(s.key for s in asked if s.kind != "accumulated_attention" or s.layer not in (layer, -1))
    if wrong:
        raise HostError(
            f"{method.name}: asks for {', '.join(wrong)}; at decode there is each layer's own accumulated_attention"
        )
    if not asked:
        return {}
    for row in rows.tolist():
        flops = accumulated_flops(of.host.shape.decoder, int(cache.length[row]))
        of.ledger[row].add("decode", "signals", flops)
    value = accumulated_attention(of.host.decoder, cache, layer, rows)
    return {s.key: value for s in asked}


def _checked(method: KVReducer, reduction: KVReduction, view: KVCache, count: int) -> int:
    """Entries that stay in each head. Raises: CountMismatch, HostError."""
    keep, s = reduction.keep, view.visual.numel()
    m = keep.shape[2]
    if reduction.count is not None and not bool((reduction.count == m).all()):
        raise HostError(f"{method.name}: heads keep different numbers of entries; this host needs one number for all")
    text = s - int(view.visual.sum())
    held = view.visual[keep.clamp(0, s - 1)]
    ascending = bool((keep[..., 1:] > keep[..., :-1]).all()) and int(keep.min()) >= 0 and int(keep.max()) < s
    if keep.shape[:2] != view.keys.shape[:2] or not ascending or not bool(((~held).sum(-1) == text).all()):
        raise CountMismatch(f"{method.name}: kept {tuple(keep.shape)} must ascend and hold all {text} text entries")
    if m > text + count or (m < text + count and not method.adaptive):
        raise CountMismatch(f"{method.name}: kept {m - text} visual entries; asked for {count}")
    return m

"""Shrinking the cache behind the prompt, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.compressors.base import KVReducer, apply_kv
from foveate.models.decode_signals import Reader
from foveate.models.decoder import LayerCache
from foveate.models.errors import HostError
from foveate.models.ledger import method_flops
from foveate.models.ragged import packed
from foveate.models.reselect import Reads, checked, looks_at
from foveate.models.visual import groups
from foveate.plans.plan import keep_count

if TYPE_CHECKING:
    from foveate.models.passes import Pass

Choices = Sequence[tuple[KVReducer | None, float]]


@dataclass(frozen=True)
class _Kept:
    """What some rows of a layer keep: entries (b, K, M, e), their weights (b, K, M) or None, numbers (b, K) of each
    head."""

    rows: Tensor
    keys: Tensor
    values: Tensor
    weight: Tensor | None
    heads: Tensor


def shrink(of: Pass, caches: Sequence[LayerCache], choices: Choices) -> list[LayerCache]:
    """Each layer's cache after each row's method, in memory of its own; text entries stay. Charges the rows' ledgers.

    Where a method reselects, all entries stay, and the cache says how they are read. Layer inputs, which signals
    are read from, are let go.

    Args:
        of: the pass.
        caches: one for each layer.
        choices: each row's method (None = untouched) and the ratio of visual entries that it keeps.
    Raises:
        CountMismatch: a method that keeps other entries than it may. HostError: a signal that is not there at `decode`.
    """
    reader = Reader(of, caches)
    made = [_layer(of, reader, layer, choices) for layer in range(len(caches))]
    reads = _reads(of, caches, choices)
    return [replace(cache, stream=None, normed=None, reads=each) for cache, each in zip(made, reads, strict=True)]


def due(method: KVReducer | None, n: int, ratio: float, layer: int, depth: int, heads: int, last: int) -> list[int]:
    """Visual entries that each head of one layer will keep of n; [] where the layer is left alone.

    Args:
        method: what acts, or None.
        n: visual entries of the layer.
        ratio: of those that stay.
        layer: which layer, from 0.
        depth: of how many.
        heads: KV heads.
        last: visual entries of the last layer.
    """
    if method is None or not n or (count := keep_count(n, ratio)) >= n:
        return []
    budgets = method.budgets(n, count, layer, depth, heads, last)
    return [] if min(budgets) >= n else list(budgets)


def _layer(of: Pass, reader: Reader, layer: int, choices: Choices) -> LayerCache:
    cache, made = reader.caches[layer], []
    length, n, last = cache.length.tolist(), cache.n.tolist(), reader.caches[-1].n.tolist()
    k, wanted = cache.keys.shape[1], {}
    for row, (method, ratio) in enumerate(choices):
        budgets = due(method, n[row], ratio, layer, of.host.decoder_depth, k, last[row])
        if budgets and not method.reselects:
            same = (tuple(budgets), n[row], keep_count(n[row], ratio), reader.standing(layer, row))
            wanted[row] = (method, *same)
    for (method, budgets, many, count, _), members in groups(list(wanted.values())):
        rows = torch.tensor([list(wanted)[m] for m in members], device=cache.keys.device)
        view = reader.view(method, layer, rows)
        reduction = method.reduce(view, count)
        heads = checked(method, reduction, view, budgets)
        for row in rows.tolist():
            flops = method_flops(method, of.host.shape, "decode", many, count, length[row] - many)
            of.ledger[row].add("decode", method.name, flops)
        weight = None
        if cache.weight is not None:  # an entry counts for what it counted for
            every = cache.weight.expand(-1, k, -1)[rows]
            weight = every.gather(-1, reduction.keep.clamp(min=0)).masked_fill(reduction.keep < 0, 1)
        made.append(_Kept(rows, apply_kv(reduction, view.keys), apply_kv(reduction, view.values), weight, heads))
    return _rebuilt(cache, made) if made else cache


def _reads(of: Pass, caches: Sequence[LayerCache], choices: Choices) -> list[Reads | None]:
    """How each layer is read where a row's method reselects. Raises: HostError where it thins a layer too early."""
    depth, heads = len(caches), caches[0].keys.shape[1]
    n = list(zip(*(cache.n.tolist() for cache in caches), strict=True))  # of each row, of each layer
    methods: list[KVReducer | None] = [None] * len(choices)
    counts = [[0] * depth for _ in choices]
    for row, (method, ratio) in enumerate(choices):
        if method is None or not method.reselects:
            continue
        budgets = [due(method, n[row][layer], ratio, layer, depth, heads, n[row][-1]) for layer in range(depth)]
        thinned = [layer for layer, each in enumerate(budgets) if each]
        if thinned and thinned[0] <= looks_at(method, depth):
            raise HostError(f"{method.name}: thins layer {thinned[0]}, and looks at layer {looks_at(method, depth)}")
        if thinned:
            methods[row], counts[row] = method, [each[0] if each else 0 for each in budgets]
    if not any(methods):
        return [None] * depth
    seed = torch.tensor([row.seed for row in of.rows])
    made = []
    for layer, cache in enumerate(caches):
        source = torch.full_like(cache.stream.entry, -1)
        for row, method in enumerate(methods):
            if method is not None:
                looked = caches[looks_at(method, depth)]
                own, there = (c.stream.entry[row, : int(c.length[row])].to(source.device) for c in (cache, looked))
                source[row, : len(own)] = _where(own, there)
        parts = (cache.stream.visual, source, cache.length, seed.to(source.device))
        made.append(Reads(tuple(methods), tuple(each[layer] for each in counts), *parts))
    return made


def _where(own: Tensor, there: Tensor) -> Tensor:
    """Where entries of one layer stand among those of another, both ascending; -1 = nowhere."""
    if torch.equal(own, there):
        return torch.arange(len(own), device=own.device)
    at = torch.searchsorted(there, own).clamp(max=len(there) - 1)
    return at.masked_fill(there[at] != own, -1)


def _rebuilt(cache: LayerCache, made: Sequence[_Kept]) -> LayerCache:
    """The layer with what some rows keep; the others as they are."""
    b, k, _, e = cache.keys.shape
    heads, n = cache.length[:, None].repeat(1, k), cache.n.clone()
    for part in made:
        text = cache.length[part.rows] - cache.n[part.rows]
        heads[part.rows] = part.heads
        n[part.rows] = -((text * k - part.heads.sum(1)) // k)  # the mean over heads, rounded up
    longest = int(heads.max())
    keys, values = (x.new_zeros(b, k, longest, e) for x in (cache.keys, cache.values))
    weight = None if cache.weight is None else cache.weight.new_ones(b, k, longest)
    untouched = torch.ones(b, dtype=torch.bool, device=keys.device)
    untouched[torch.cat([part.rows for part in made])] = False
    old = untouched.nonzero()[:, 0]
    kept_whole = None if weight is None else cache.weight.expand(-1, k, -1)[old]
    for part in (*made, _Kept(old, cache.keys[old], cache.values[old], kept_whole, heads[old])):
        m = min(longest, part.keys.shape[2])
        keys[part.rows, :, :m], values[part.rows, :, :m] = part.keys[:, :, :m], part.values[:, :, :m]
        if weight is not None:
            weight[part.rows, :, :m] = part.weight[:, :, :m]
    same = bool((heads == heads[:, :1]).all())
    if not same:
        keys, values = packed(keys, heads), packed(values, heads)
    return LayerCache(keys, values, heads.amax(1), cache.next_place, n, None, weight, heads=None if same else heads)

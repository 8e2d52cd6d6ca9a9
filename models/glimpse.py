"""A method's own token behind the prompt: what it sees in one layer, and what is left of caches that forget.

The token comes last in a causal model, so nothing else sees it. It is fed behind the caches once the layers have run,
which gives what running along would have given, and leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.behind import Continuation
from foveate.models.ragged import exists
from foveate.plans.cost import DecoderShape, decoder_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveate.models.decoder import LayerCache, Stream
    from foveate.models.prefill import Prefill
    from foveate.models.visual import VisualState


def glimpse_query(prefill: Prefill, rows: Tensor, layer: int, token: Tensor) -> Tensor:
    """Logarithm of the token's attention on each visual entry in a layer that has run: (b, H, n) float32.

    Args:
        prefill: the prompts, of which nothing has left before that layer.
        rows: (b,) rows with equal numbers of visual entries.
        layer: which layer.
        token: (layer + 1, D) what the token is, and what is added to it before each later layer.
    """
    decoder, cache = prefill.decoder, prefill.caches[layer]
    x = torch.zeros(len(rows), 1, token.shape[1], dtype=prefill.stream.x.dtype, device=token.device)
    if layer:
        x = Continuation(decoder, prefill.caches[:layer], rows.to(prefill.caches[0].keys.device)).run(x, added=token)
    rows, x = rows.to(cache.keys.device), x.to(cache.keys.device)
    x = x + token[layer].to(x)
    place = cache.next_place[rows, None, None].expand(-1, -1, decoder.coordinates)
    q, own = (decoder.rotated(layer, x, place, part) for part in "qk")
    k = torch.cat([cache.keys[rows], own], dim=2)
    logits = (q.unflatten(1, (decoder.kv_heads, -1))[:, :, :, 0] @ k.transpose(-1, -2)).float().flatten(1, 2)
    logits = logits * decoder.layers[layer].self_attn.scaling
    if cache.stream.weight is not None:
        logits = logits + F.pad(cache.stream.weight[rows].log(), (0, 1))[:, None]
    there = F.pad(exists(cache.length[rows], cache.keys.shape[2]), (0, 1), value=True)
    seen = logits.masked_fill(~there[:, None], float("-inf")).log_softmax(-1)
    visual = cache.stream.visual[rows].nonzero()[:, 1].view(len(rows), 1, -1)
    return seen.gather(2, visual.expand(-1, seen.shape[1], -1))


def glimpse_flops(shape: DecoderShape, n: int, layer: int) -> int:
    """Matrix FLOPs of that for a row of n entries: the token in the layers before, and its row of attention there."""
    row = 2 * shape.dim * (shape.query_width + shape.key_width) + 2 * (n + 1) * shape.query_width
    return layer * decoder_block(shape, 1, n) + row + 2 * (layer + 1) * shape.dim**2


def level_blocks(depth: int, levels: int) -> list[int]:
    """Evenly spaced blocks of a tower, the last one first: 31, 23, 15, 7 of 32."""
    return [max(0, int(depth * part / levels + 0.5) - 1) for part in range(levels, 0, -1)]


def vectors_on_grid(value: Tensor, state: VisualState, grid: Grid) -> Tensor:
    """Vectors (n, C) of a view's tokens at each place of a grid, their mean where several become one; 0 = none."""
    full, there = (
        value.new_zeros(state.grid[0] * state.grid[1] * state.grid[2], value.shape[1] + 1),
        state.position >= 0,
    )
    full[state.position[there]] = F.pad(value[there], (0, 1), value=1.0)
    if grid != state.grid:
        maps = full.view(*state.grid, -1).movedim(-1, 0)
        full = F.adaptive_avg_pool3d(maps.float(), grid).flatten(1).T.to(value)
    return full[:, :-1] / full[:, -1:].clamp(min=1e-6)


def forget(caches: Sequence[LayerCache], stream: Stream, rows: Tensor) -> list[LayerCache]:
    """The caches of layers that have run, for some rows without the entries that the stream has no longer.

    Args:
        caches: one for each of these layers.
        stream: what goes on to the next layer.
        rows: (b,) whose entries leave; the others keep theirs.
    """
    bin_ = 1 + max(int(c.stream.entry[exists(c.length, c.stream.entry.shape[1])].max()) for c in caches)
    gone = ~exists(stream.length, stream.entry.shape[1])
    left = torch.zeros(len(stream.length), bin_ + 1, dtype=torch.bool, device=stream.x.device)
    left.scatter_(1, stream.entry.masked_fill(gone, bin_), True)
    whole = torch.ones(len(left), dtype=torch.bool, device=left.device)
    whole[rows] = False
    left |= whole[:, None]
    return [_without(c, left.to(c.keys.device), bin_) for c in caches]


def _without(cache: LayerCache, left: Tensor, bin_: int) -> LayerCache:
    """One layer's cache with the entries where `left` (B, entries) is true."""
    there = exists(cache.length, cache.stream.entry.shape[1])
    stays = there & left.gather(1, cache.stream.entry.masked_fill(~there, bin_))
    length = stays.sum(dim=1)
    order = (~stays).long().argsort(dim=1, stable=True)[:, : int(length.max())]
    at = order[:, None, :, None].expand(-1, cache.keys.shape[1], -1, cache.keys.shape[-1])
    stream = cache.stream.picked(order, length)
    normed = None
    if cache.normed is not None:
        normed = cache.normed.gather(1, order[..., None].expand(-1, -1, cache.normed.shape[-1]))
    weight = None if stream.weight is None else stream.weight[:, None]
    parts = {"keys": cache.keys.gather(2, at), "values": cache.values.gather(2, at), "weight": weight}
    return replace(cache, **parts, length=length, n=stream.n, stream=stream, normed=normed)

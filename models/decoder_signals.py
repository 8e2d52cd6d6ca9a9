"""Signals of the decoder, recomputed from the layer inputs and caches that a pass keeps; fused attention stays on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.models.decoder import Decoder, LayerCache, Stream
from foveate.models.prefill import Prefill, visual_index
from foveate.models.signals import mean_softmax, numbers, read


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

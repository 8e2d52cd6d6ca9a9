"""A layer that some visual tokens go around: what runs through it is a shorter prompt, behind it all are there again.

Cuts cannot say this: what they take away is gone. Where a method has `bypass`, the stream keeps every token and the
layer gets those that were chosen, packed in order, at their own places; its cache holds no others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.models.decoder import Decoder, LayerCache, Stream
from foveate.models.ragged import exists


@dataclass(frozen=True)
class Bypass:
    """Who runs through one layer.

    Attributes:
        stays: (B, S) bool, the entries of the stream that do; padding does not.
        scale: (B, S) float32, what others are multiplied by, and the MLP branch of those that run; 1 for words.
    """

    stays: Tensor
    scale: Tensor


def around(
    decoder: Decoder, layer: int, stream: Stream, bypass: Bypass, watched: bool = False
) -> tuple[Tensor, LayerCache]:
    """One layer with a bypass: the output of all entries (B, S, D), and the cache of those that ran through it.

    Args:
        decoder: the opened model.
        layer: which layer.
        stream: its input.
        bypass: who runs through.
        watched: see `Decoder.layer`.
    """
    length = bypass.stays.sum(dim=1)
    order = (~bypass.stays).long().argsort(dim=1, stable=True)[:, : int(length.max())]
    inside = stream.picked(order, length)
    scale = bypass.scale.gather(1, order)
    out, cache = decoder.layer(layer, inside, decoder.rotation(inside.x, inside.place), watched, scale)
    everything = (stream.x * bypass.scale[..., None]).to(out.dtype)
    if stream.extra is not None and layer < stream.extra.shape[2]:
        everything = everything + stream.extra[:, :, layer]
    there = exists(length, order.shape[1])
    row = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    return everything.index_put((row[there], order[there]), out[there]), cache

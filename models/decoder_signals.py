"""Signals of the decoder, recomputed from the layer inputs and caches that a pass keeps; fused attention stays on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from foveate.models.decoder import Decoder, LayerCache, Stream
from foveate.models.errors import HostError
from foveate.models.prefill import Prefill, visual_index
from foveate.models.ragged import exists
from foveate.models.signals import mean_softmax, numbers, read


@dataclass(frozen=True)
class At:
    """Rows with equal numbers of visual entries, at one layer.

    Attributes:
        decoder: the opened model.
        layer: which layer.
        stream: its input.
        cache: its cache where it has run, else None (keys are then computed).
        rows: (b,) which rows.
    """

    decoder: Decoder
    layer: int
    stream: Stream
    cache: LayerCache | None
    rows: Tensor

    @property
    def visual(self) -> Tensor:
        """(b, n) the visual entries."""
        return visual_index(self.stream, self.rows)

    def entries(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Input (b, m, D) and places (b, m, P) of the entries at (b, m)."""
        at = (self.rows[:, None], index)
        return self.stream.x[at], self.stream.place[at]

    def keys(self, index: Tensor) -> Tensor:
        """(b, K, m, e) keys of the entries at (b, m), rotated as cached."""
        if self.cache is None:
            return self.decoder.rotated(self.layer, *self.entries(index), "k")
        keys = self.cache.keys[self.rows]
        return keys.gather(2, index[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1]))

    def attention(self, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        """Softmax of one query a head (b, H, 1, e) over keys (b, K, S, e), at the visual entries: (b, H, n) float32.

        Args:
            q: the queries.
            k: keys of all entries.
            seen: (b, S) bool, the entries that the softmax is over.
        """
        logits = (q.unflatten(1, (self.decoder.kv_heads, -1))[:, :, :, 0] @ k.transpose(-1, -2)).float()
        logits = logits.flatten(1, 2) * self.decoder.layers[self.layer].self_attn.scaling
        if self.stream.weight is not None:
            logits = logits + self.stream.weight[self.rows].log()[:, None]
        attention = logits.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        return attention.gather(2, self.visual[:, None].expand(-1, attention.shape[1], -1))

    @property
    def real(self) -> Tensor:
        """(b, S) bool, the entries that are no padding."""
        return exists(self.stream.length[self.rows], self.stream.x.shape[1])


def last_query(at: At) -> Tensor:
    """The last prompt token's attention on each visual entry: (b, H, n), softmax over all entries of the layer."""
    stream, last = at.stream, at.stream.length[at.rows, None] - 1
    q = at.decoder.rotated(at.layer, *at.entries(last), "q")
    if at.cache is None:
        k = at.decoder.rotated(at.layer, stream.x[at.rows], stream.place[at.rows], "k")
    else:
        k = at.cache.keys[at.rows]
    return at.attention(q, k, at.real)


def unrotated_query(at: At) -> Tensor:
    """The same as if places did not matter: neither the query nor the keys are rotated."""
    last = at.stream.length[at.rows, None] - 1
    q = at.decoder.unrotated(at.layer, at.entries(last)[0], "q")
    return at.attention(q, at.decoder.unrotated(at.layer, at.stream.x[at.rows], "k"), at.real)


def mean_query(at: At) -> Tensor:
    """Attention of the mean query of the entries up to the last visual one on them: (b, H, n), nothing rotated."""
    x = at.stream.x[at.rows]
    line = torch.arange(x.shape[1], device=x.device)
    seen = line[None] <= at.visual[:, -1:]
    q = at.decoder.unrotated(at.layer, x, "q") * seen[:, None, :, None]
    mean = (q.float().sum(2, keepdim=True) / seen.sum(1)[:, None, None, None]).to(q.dtype)
    return at.attention(mean, at.decoder.unrotated(at.layer, x, "k"), seen)


def visual_keys(at: At) -> Tensor:
    """Keys of each visual entry: (b, n, e), rotated as cached, mean over KV heads."""
    return at.keys(at.visual).mean(1)


def wide_keys(at: At) -> Tensor:
    """The same with KV heads side by side: (b, n, K * e)."""
    return at.keys(at.visual).transpose(1, 2).flatten(2)


def hidden_states(at: At) -> Tensor:
    """Each visual entry at the layer's input: (b, n, D)."""
    return at.entries(at.visual)[0]


def post_norm(at: At) -> Tensor:
    """What the layer's MLP read of each visual entry: (b, n, D). Raises: HostError where the layer has not kept it."""
    if at.cache is None or at.cache.normed is None:
        raise HostError(f"post_norm: layer {at.layer} has not run, or ran before it was known that this would be asked")
    return at.cache.normed[at.rows[:, None], at.visual]


def text_attention(at: At) -> Tensor:
    """Attention of the words on each visual entry, mean over heads: (b, 2, n), the sum over words and the largest."""
    means = [attention.mean(0) for attention, _ in _of_words(at)]
    return torch.stack([torch.stack([mean.sum(0), mean.amax(0)]) for mean in means])


def text_peak(at: At) -> Tensor:
    """The largest attention on each visual entry over all heads and the words behind the last visual entry: (b, n)."""
    return torch.stack([attention[:, behind].amax((0, 1)) for attention, behind in _of_words(at)])


def _of_words(at: At) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each row: attention of its words on its visual entries (H, words, n), and which words stand behind these."""
    decoder, stream = at.decoder, at.stream
    for number, row in enumerate(at.rows.tolist()):
        s = int(stream.length[row])
        visual = stream.visual[row, :s]
        words = (~visual).nonzero()[:, 0]
        one = replace(at, rows=at.rows[number : number + 1])
        q = decoder.rotated(at.layer, *one.entries(words[None]), "q").unflatten(1, (decoder.kv_heads, -1))
        k = one.keys(torch.arange(s, device=words.device)[None])[:, :, None]
        logits = (q @ k.transpose(-1, -2)).float() * decoder.layers[at.layer].self_attn.scaling  # (1, K, g, words, s)
        if stream.weight is not None:
            logits = logits + stream.weight[row, :s].log()
        ahead = torch.arange(s, device=words.device) > words[:, None]
        attention = logits.masked_fill(ahead, float("-inf")).softmax(-1).flatten(0, 2)
        yield attention[..., visual], words > visual.nonzero()[-1, 0]


DECODER_KINDS = {
    made.__name__: made
    for made in (
        *(last_query, unrotated_query, mean_query, text_attention, text_peak),
        *(visual_keys, wide_keys, hidden_states, post_norm),
    )
}
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


def received(decoder: Decoder, cache: LayerCache, layer: int, rows: Tensor, since: int = 0, chunk: int = 256) -> Tensor:
    """Attention that each cached key received from prompt queries, summed with its group's heads: (b, K, S) float32.

    Args:
        decoder: the opened model.
        cache: the layer's, with its input.
        layer: which layer.
        rows: (b,) rows of equal length.
        since: the first query that counts.
        chunk: queries at a time.
    """
    s = int(cache.length[rows[0]])
    x, place = cache.stream.x[rows, since:s], cache.stream.place[rows, since:s]
    q = decoder.rotated(layer, x, place, "q").unflatten(1, (decoder.kv_heads, -1))
    k = cache.keys[rows, :, None, :s].transpose(-1, -2)
    more = 0 if cache.weight is None else cache.weight[rows, :, None, None, :s].log()
    out = torch.zeros(len(rows), decoder.kv_heads, s, device=x.device)
    index = torch.arange(s, device=x.device)
    for first in range(since, s, chunk):
        part = q[:, :, :, first - since : first - since + chunk]
        logits = (part @ k).float() * decoder.layers[layer].self_attn.scaling + more
        ahead = index[None] > index[first : first + chunk, None]
        out += logits.masked_fill(ahead, float("-inf")).softmax(-1).sum(dim=(2, 3))
    return out

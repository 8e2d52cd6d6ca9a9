"""The language model, layer by layer: every layer has its own rows, lengths, positions and cache.

Rows of different lengths are padded on the right. In prefill no row can see its padding then (it lies in the future of
every real token), so no mask is needed and fused attention stays on; behind a cache the mask names what exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.models.errors import UnsupportedModel

DECODERS = ("llama", "qwen2", "mistral")


@dataclass(frozen=True)
class Stream:
    """The rows at the input of one layer. S is the longest row; what lies behind `length` is padding.

    Attributes:
        x: (B, S, D) hidden states.
        length: (B,) entries of each row.
        place: (B, S) int64 position ids.
        next_place: (B,) position id of the first generated token.
        start, n: (B,) first visual entry and number of visual entries; they stand in one block.
        size: (B, S) float32 and position (B, S) int64 as in `Tokens`, meaningful where visual.
    """

    x: Tensor
    length: Tensor
    place: Tensor
    next_place: Tensor
    start: Tensor
    n: Tensor
    size: Tensor
    position: Tensor

    def at(self, rows: Tensor) -> Stream:
        """Some rows."""
        return Stream(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps after prefill.

    Attributes:
        keys, values: (B, K, S, e), keys rotated, right-padded.
        length: (B,) entries.
        next_place: (B,) position id of the first generated token at this layer.
        n: (B,) visual entries.
        stream: the layer's input, for signals asked for later; None once the cache was shrunk.
    """

    keys: Tensor
    values: Tensor
    length: Tensor
    next_place: Tensor
    n: Tensor
    stream: Stream | None

    def at(self, rows: Tensor) -> LayerCache:
        """Some rows."""
        stream = None if self.stream is None else self.stream.at(rows)
        parts = {name: getattr(self, name)[rows] for name in ("keys", "values", "length", "next_place", "n")}
        return LayerCache(**parts, stream=stream)


class _Held:
    """What a HF layer takes for a cache: puts the kept entries in front of the new ones and remembers both."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Decoder:
    """A LLaMA-like language model, opened.

    Args:
        model: `LlamaModel`, `Qwen2Model` or `MistralModel`.
        head: its LM head.
    Raises:
        UnsupportedModel: layers with a sliding window.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        config = model.config
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if sliding or (config.model_type == "mistral" and config.sliding_window):
            raise UnsupportedModel(f"language model {config.model_type!r}: sliding-window layers are not supported")
        self.config, self.model, self.head = config, model, head
        self.layers = model.layers[: config.num_hidden_layers]
        self.depth = len(self.layers)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = self.layers[0].self_attn.head_dim

    @property
    def eager(self) -> bool:
        """Attention runs as plain matrix products."""
        return self.config._attn_implementation == "eager"

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids -> hidden states."""
        return self.model.embed_tokens(ids)

    def rotation(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, e) of position ids (B, S)."""
        return self.model.rotary_emb(x, position_ids=place)

    def layer(self, index: int, stream: Stream, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, LayerCache]:
        """One layer over whole rows, nothing cached before: its output (B, S, D) and its cache."""
        mask = None
        if self.eager:  # fused kernels know what causal means
            s = stream.x.shape[1]
            mask = self.additive(torch.ones(1, 1, s, s, dtype=torch.bool, device=stream.x.device).tril(), stream.x)
        held = _Held()
        out = self.layers[index](
            stream.x,
            attention_mask=mask,
            position_ids=stream.place,
            past_key_values=held,
            use_cache=True,
            position_embeddings=rotation,
        )
        return out, LayerCache(held.keys, held.values, stream.length, stream.next_place, stream.n, stream)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states (..., D) behind the last layer -> float32 logits (..., V)."""
        return self.head(self.model.norm(x)).float()

    def additive(self, allowed: Tensor, x: Tensor) -> Tensor:
        """A bool mask as what the attention implementation adds to logits."""
        zero = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device)
        return zero.masked_fill(~allowed, torch.finfo(x.dtype).min)


class Continuation:
    """Tokens behind a cache: layer by layer, each with its own length and positions. The caches given are not changed.

    Args:
        decoder: the opened model.
        caches: one per layer; rows are those of `rows`.
        rows: (R,) which rows of the caches to go on from; a row may be taken several times.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[LayerCache], rows: Tensor) -> None:
        self.decoder = decoder
        self.fed = 0
        self.held, self.valid, self.next_place = [], [], []
        everything = torch.equal(rows, torch.arange(caches[0].length.numel(), device=rows.device))
        for c in caches:
            part = c if everything else replace(c, stream=None).at(rows)
            s = part.keys.shape[2]
            self.held.append(_Held(part.keys, part.values))
            self.valid.append(torch.arange(s, device=rows.device)[None] < part.length[:, None])
            self.next_place.append(part.next_place)

    def feed(self, ids: Tensor) -> Tensor:
        """Token ids (R, Q), causal among themselves -> hidden states (R, Q, D) behind the last layer."""
        q = ids.shape[1]
        x = self.decoder.embed(ids)
        own = torch.ones(q, q, dtype=torch.bool, device=ids.device).tril().expand(ids.shape[0], q, q)
        offset = torch.arange(self.fed, self.fed + q, device=ids.device)
        rotation, seen = None, None
        for index, held in enumerate(self.held):
            if seen is None or not torch.equal(seen, self.next_place[index]):
                seen = self.next_place[index]
                rotation = self.decoder.rotation(x, seen[:, None] + offset)
            allowed = torch.cat([self.valid[index][:, None].expand(-1, q, -1), own], dim=-1)[:, None]
            x = self.decoder.layers[index](
                x,
                attention_mask=self.decoder.additive(allowed, x) if self.decoder.eager else allowed,
                position_ids=seen[:, None] + offset,
                past_key_values=held,
                use_cache=True,
                position_embeddings=rotation,
            )
            self.valid[index] = torch.cat([self.valid[index], own[:, -1]], dim=-1)
        self.fed += q
        return x


def greedy(
    decoder: Decoder, caches: Sequence[LayerCache], first: Tensor, ends: frozenset[int], limit: int
) -> list[list[int]]:
    """Greedy decoding.

    Args:
        decoder: the opened model.
        caches: one per layer, B rows.
        first: (B, V) logits behind the prompt.
        ends: ids that end a row.
        limit: most tokens of a row, at least 1.
    Returns:
        The ids of each row, its end token included where it came.
    """
    out: list[list[int]] = [[] for _ in range(first.shape[0])]
    live = torch.arange(first.shape[0], device=first.device)
    run, logits = Continuation(decoder, caches, live), first
    done = [False] * len(out)
    for step in range(limit):
        token = logits.argmax(-1)
        for row, t in enumerate(token.tolist()):
            if not done[row]:
                out[row].append(t)
                done[row] = t in ends
        if all(done) or step == limit - 1:
            break
        logits = decoder.logits(run.feed(token[:, None])[:, -1])
    return out

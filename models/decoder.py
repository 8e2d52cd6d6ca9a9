"""The language model, layer by layer: every layer has its own rows, lengths, positions and cache.

Rows of different lengths are padded on the right. In prefill no row can see its padding then (it lies in the future of
every real token), so no mask is needed and fused attention stays on; behind a cache the mask names what exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from foveate.models.errors import UnsupportedModel
from foveate.models.placing import device_of
from foveate.models.ragged import exists, packed, unpacked
from foveate.plans.cost import DecoderShape

if TYPE_CHECKING:
    from foveate.models.reselect import Reads

DECODERS = ("llama", "qwen2", "mistral", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text")
"""Model types of language models that can be opened."""

BY_THREE = ("qwen2_5_vl_text", "qwen3_vl_text")
"""Those that rotate by three coordinates: time, row and column."""


def check_decoder(config: Any, name: str, known: Sequence[str] = DECODERS) -> None:
    """Refuses a model whose language model cannot be opened. Raises: UnsupportedModel.

    Args:
        config: of the whole model.
        name: for the message.
        known: model types that its family takes.
    """
    decoder = config.text_config.model_type
    if decoder not in known:
        raise UnsupportedModel(f"{name}: language model {decoder!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Stream:
    """The rows at the input of one layer. S is the longest row; what lies behind `length` is padding.

    Attributes:
        x: (B, S, D) hidden states.
        length: (B,) entries of each row.
        place: (B, S, P) int64 position ids.
        next_place: (B,) position id of the first generated token, in every coordinate.
        visual: (B, S) bool, which entries are visual tokens.
        entry: (B, S) int64 each entry's index in the uncompressed prompt, ascending.
        size: (B, S) float32 and position (B, S) int64 as in `Tokens`, meaningful where visual.
        extra: (B, S, L, D) what is added behind layers 0..L-1, zero where not visual; None without.
        weight: (B, S) float32, the tokens that each entry counts for in attention, 1 for words and padding; None = one.
    """

    x: Tensor
    length: Tensor
    place: Tensor
    next_place: Tensor
    visual: Tensor
    entry: Tensor
    size: Tensor
    position: Tensor
    extra: Tensor | None = None
    weight: Tensor | None = None

    @property
    def n(self) -> Tensor:
        """(B,) visual entries."""
        return self.visual.sum(dim=1)

    def at(self, rows: Tensor) -> Stream:
        """Some rows."""
        rows = rows.to(self.x.device)
        return Stream(**{name: None if value is None else value[rows] for name, value in vars(self).items()})

    def picked(self, order: Tensor, length: Tensor) -> Stream:
        """The entries at `order` (B, K), of which the first `length` (B,) of each row exist."""
        line, there = torch.arange(len(order), device=order.device)[:, None], exists(length, order.shape[1])
        names = [n for n, value in vars(self).items() if value is not None and n not in ("length", "next_place")]
        parts = {name: getattr(self, name)[line, order] for name in names}
        parts["visual"] &= there
        if "weight" in parts:
            parts["weight"] = parts["weight"].masked_fill(~there, 1)
        return replace(self, length=length, **parts)

    def to(self, device: torch.device) -> Stream:
        """On another device; itself where it is there."""
        if self.x.device == device:
            return self
        return Stream(**{name: None if value is None else value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps after prefill.

    Attributes:
        keys, values: (B, K, S, e), keys rotated, right-padded; where heads differ (T, e), see `ragged`.
        length: (B,) entries; of the longest head where heads differ.
        next_place: (B,) position id of the first generated token at this layer.
        n: (B,) visual entries; the mean over heads, rounded up, where they differ.
        stream: the layer's input, for signals asked for later; None once the stage `decode` has passed.
        weight: (B, 1 or K, S) float32 as in `Stream`; None = one.
        normed: (B, S, D) what the layer's MLP read, where it was asked for.
        heads: (B, K) entries of each head, where heads differ.
        reads: how the answer's tokens read it, where a row's method chooses that anew for each.
    """

    keys: Tensor
    values: Tensor
    length: Tensor
    next_place: Tensor
    n: Tensor
    stream: Stream | None
    weight: Tensor | None = None
    normed: Tensor | None = None
    heads: Tensor | None = None
    reads: Reads | None = None

    def at(self, rows: Tensor) -> LayerCache:
        """Some rows."""
        rows = rows.to(self.keys.device)
        stream = None if self.stream is None else self.stream.at(rows)
        names = ("keys", "values", "length", "next_place", "n", "weight", "normed", "heads")
        parts = {name: getattr(self, name) for name in names}
        if self.heads is not None:
            parts |= {name: unpacked(parts[name], self.heads) for name in ("keys", "values")}
        parts = {name: None if part is None else part[rows] for name, part in parts.items()}
        if self.heads is not None:
            parts |= {name: packed(parts[name], parts["heads"]) for name in ("keys", "values")}
        return LayerCache(**parts, stream=stream, reads=None if self.reads is None else self.reads.at(rows))

    def entries(self, row: int) -> int | tuple[int, ...]:
        """What a row has here: one number, or one for each head where they differ."""
        return int(self.length[row]) if self.heads is None else tuple(self.heads[row].tolist())

    @property
    def shown(self) -> list[int]:
        """Of each row: visual entries that a token of its answer reads."""
        chosen = [0] * len(self.n) if self.reads is None else self.reads.count
        return [count or n for count, n in zip(chosen, self.n.tolist(), strict=True)]

    @property
    def bytes(self) -> int:
        """What keys and values take in memory."""
        return sum(x.untyped_storage().nbytes() for x in (self.keys, self.values))


class Held:
    """What a HF layer takes for a cache: puts the kept entries in front of the new ones and remembers both.

    Entries of heads that differ stay packed; they lie side by side only while their layer runs.

    Attributes:
        ragged: the cache in front where heads differ, else None.
        keys, values: (B, K, S, e) all entries; those behind `ragged` where heads differ; None before there are any.
        only: (B, M) which of all entries the next tokens are given; None = all.
    """

    def __init__(self, cache: LayerCache | None = None) -> None:
        self.ragged = cache if cache is not None and cache.heads is not None else None
        self.only: Tensor | None = None
        plain = cache is not None and cache.heads is None
        self.keys, self.values = (cache.keys, cache.values) if plain else (None, None)

    @property
    def device(self) -> torch.device:
        """Where its entries lie."""
        return self.keys.device if self.ragged is None else self.ragged.keys.device

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Takes in new entries; what its layer is to see."""
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        keys, values = self.whole()
        if self.only is None:
            return keys, values
        at = self.only[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
        return keys.gather(2, at), values.gather(2, at)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values, side by side."""
        if self.ragged is None:
            return self.keys, self.values
        front = [unpacked(x, self.ragged.heads) for x in (self.ragged.keys, self.ragged.values)]
        return torch.cat([front[0], self.keys], dim=2), torch.cat([front[1], self.values], dim=2)

    def reorder(self, rows: Tensor, same: bool) -> None:
        """Row i becomes what row `rows[i]` was; `same`: packed entries of both are alike."""
        if self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
        if self.ragged is not None and not same:
            self.ragged = self.ragged.at(rows)


class Decoder:
    """A LLaMA-like language model, opened.

    Args:
        model: the text model of one of `DECODERS`.
        head: its LM head.
    Raises:
        UnsupportedModel: layers with a sliding window.

    Attributes:
        coordinates: P, position ids of each entry: 1, or 3 where rotation is by time, row and column.
        devices: where each layer runs.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        config = model.config
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if sliding or (config.model_type == "mistral" and config.sliding_window):
            raise UnsupportedModel(f"language model {config.model_type!r}: sliding-window layers are not supported")
        self.config, self.model, self.head = config, model, head
        self.layers = model.layers[: config.num_hidden_layers]
        self.depth, self.devices = len(self.layers), [device_of(layer) for layer in self.layers]
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = self.layers[0].self_attn.head_dim
        self.coordinates = 3 if config.model_type in BY_THREE else 1

    @property
    def shape(self) -> DecoderShape:
        """Its sizes, for the cost model."""
        c = self.config
        return DecoderShape(
            dim=c.hidden_size,
            mlp=c.intermediate_size,
            layers=self.depth,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.head.weight.shape[0],
        )

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one number in the cache."""
        return self.head.weight.element_size()

    @property
    def eager(self) -> bool:
        """Attention runs as plain matrix products."""
        return self.config._attn_implementation == "eager"

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids -> hidden states."""
        return self.model.embed_tokens(ids)

    def rotation(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, e) of position ids (B, S, P)."""
        return self.model.rotary_emb(x, position_ids=place[..., 0] if self.coordinates == 1 else place.movedim(-1, 0))

    def unrotated(self, layer: int, states: Tensor, part: str) -> Tensor:
        """Queries ("q") or keys ("k") of a layer before their rotation, (b, heads, S, e), from its input (b, S, D)."""
        block = self.layers[layer]
        return self.by_head(layer, getattr(block.self_attn, f"{part}_proj")(block.input_layernorm(states)), part)

    def by_head(self, layer: int, made: Tensor, part: str) -> Tensor:
        """What a layer's projection gives (b, S, heads e), normalised where the layer does that: (b, heads, S, e)."""
        made = made.unflatten(-1, (-1, self.head_dim))
        norm = getattr(self.layers[layer].self_attn, f"{part}_norm", None)
        return (made if norm is None else norm(made)).transpose(1, 2)

    def rotated(self, layer: int, states: Tensor, place: Tensor, part: str) -> Tensor:
        """Queries or keys as in `unrotated`, rotated to places (b, S, P)."""
        return self.turned(self.unrotated(layer, states, part), place)

    def turned(self, made: Tensor, place: Tensor) -> Tensor:
        """Queries or keys (b, heads, S, e) without rotation, rotated to places (b, S, P)."""
        cos, sin = self.rotation(made, place)
        return apply_rotary_pos_emb(made, made, cos, sin)[0]

    def layer(
        self,
        index: int,
        stream: Stream,
        rotation: tuple[Tensor, Tensor],
        watched: bool = False,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """One layer over whole rows, nothing cached before: its output (B, S, D) and its cache.

        Args:
            index: which layer.
            stream: its input.
            rotation: at the stream's places.
            watched: the cache shall hold what the layer's MLP read.
            scale: (B, S) float32, what each entry's MLP branch is multiplied by; None = one.
        """
        mask, weight = None, None if stream.weight is None else stream.weight[:, None]
        if self.eager or weight is not None:  # fused kernels know what causal means
            s = stream.x.shape[1]
            mask = self.additive(torch.ones(1, 1, s, s, dtype=torch.bool, device=stream.x.device).tril(), stream.x)
            mask = mask if weight is None else mask + self.log_weight(weight, mask)
        held, block, seen = Held(), self.layers[index], []
        see = (lambda _, __, out: seen.append(out)) if watched else None
        weigh = None if scale is None else lambda _, __, out: (out * scale[..., None]).to(out.dtype)
        with hooked(block.post_attention_layernorm, see), hooked(block.mlp, weigh):
            out = block(
                stream.x,
                attention_mask=mask,
                position_ids=stream.place[..., 0] if self.coordinates == 1 else None,
                past_key_values=held,
                use_cache=True,
                position_embeddings=rotation,
            )
        if stream.extra is not None and index < stream.extra.shape[2]:
            out = out + stream.extra[:, :, index]
        normed = seen[0] if watched else None
        rest = (stream.length, stream.next_place, stream.n, stream, weight, normed)
        return out, LayerCache(held.keys, held.values, *rest)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states (..., D) behind the last layer -> float32 logits (..., V)."""
        return self.head(self.model.norm(x)).float()

    def additive(self, allowed: Tensor, x: Tensor) -> Tensor:
        """A bool mask as what the attention implementation adds to logits."""
        zero = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device)
        return zero.masked_fill(~allowed, torch.finfo(x.dtype).min)

    def log_weight(self, weight: Tensor, mask: Tensor) -> Tensor:
        """What weights (B, 1 or K, S) of the first S entries add to a mask (B, 1, Q, S or more); words add nothing."""
        if weight.shape[1] > 1:
            weight = weight.repeat_interleave(self.heads // self.kv_heads, dim=1)
        return F.pad(weight.log(), (0, mask.shape[-1] - weight.shape[-1]))[:, :, None].to(mask.dtype)


@contextmanager
def hooked(part: nn.Module, hook: Callable[..., Tensor | None] | None) -> Iterator[None]:
    """A part of a layer with a forward hook while this lasts; None = as it is."""
    handle = None if hook is None else part.register_forward_hook(hook)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()

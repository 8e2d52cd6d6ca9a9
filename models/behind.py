"""Tokens behind a cache: teacher-forced, greedy, or the next turn of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.decoder import Decoder, Held, LayerCache
from foveate.models.ragged import exists, packed
from foveate.models.reselect import Reselection, narrowed


class Continuation:
    """Tokens behind a cache: layer by layer, each with its own length and positions. The caches given are not changed.

    Args:
        decoder: the opened model.
        caches: one per layer; rows are those of `rows`.
        rows: (R,) which rows of the caches to go on from; a row may be taken several times.
        keep_inputs: `inputs` holds what each layer read of the tokens fed last.
        answers: they are an answer's: where a method reselects, they read what it chooses.

    Attributes:
        rows: (R,) the same, as `reorder` left them.
        fed: (R,) tokens behind the cache so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[LayerCache],
        rows: Tensor,
        keep_inputs: bool = False,
        answers: bool = True,
    ) -> None:
        self.decoder, self.keep_inputs = decoder, keep_inputs
        self.inputs: list[Tensor] = []
        self.rows, self.fed = rows, torch.zeros_like(rows)
        self.held, self.valid, self.next_place, self.weight, self.n, self.reads = [], [], [], [], [], []
        everything = rows.tolist() == list(range(caches[0].length.numel()))
        for c in caches:
            part = c if everything else replace(c, stream=None, normed=None).at(rows)
            self.held.append(Held(part))
            self.valid.append(self._valid(part))
            self.next_place.append(part.next_place)
            self.weight.append(part.weight)
            self.n.append(part.n)
            self.reads.append(part.reads)
        chosen = answers and self.reads and self.reads[0] is not None
        self.chosen = Reselection(decoder, self.reads) if chosen else None

    def _valid(self, cache: LayerCache) -> Tensor:
        """(R, 1, S) bool, the entries that exist; (R, query heads, S) where heads differ."""
        if cache.heads is None:
            return exists(cache.length[:, None], cache.keys.shape[2])
        groups = self.decoder.heads // self.decoder.kv_heads
        return exists(cache.heads, int(cache.heads.max())).repeat_interleave(groups, dim=1)

    def feed(self, ids: Tensor, length: Tensor | None = None) -> Tensor:
        """Token ids (R, Q), causal among themselves -> hidden states (R, Q, D) behind the last layer.

        Args:
            ids: the tokens, padded on the right.
            length: (R,) how many of them each row has; None = all. What stands behind means nothing.
        """
        return self.run(self.decoder.embed(ids), length)

    def run(self, x: Tensor, length: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """The same of states (R, Q, D) in place of embedded tokens.

        Args:
            x: what enters the first layer.
            length: as in `feed`.
            added: (layers, D) what is added to the first of them before each layer.
        """
        b, q = x.shape[:2]
        length = torch.full((b,), q, device=x.device) if length is None else length
        own = torch.ones(q, q, dtype=torch.bool, device=x.device).tril().expand(b, q, q)
        offset = self.fed[:, None] + torch.arange(q, device=x.device)
        there = exists(length, q)[:, None]
        rotation, seen, place = None, None, None
        if self.chosen is not None:
            self.chosen.begin(q)
        for index, held in enumerate(self.held):
            device = self.decoder.devices[index]
            if x.device != device:
                x, own, offset, there, seen = (*(t.to(device) for t in (x, own, offset, there)), None)
            if added is not None:
                x = torch.cat([x[:, :1] + added[index].to(x), x[:, 1:]], dim=1)
            if seen is None or not torch.equal(seen, self.next_place[index]):
                seen = self.next_place[index]
                place = seen[:, None] + offset
                rotation = self.decoder.rotation(x, place[..., None].expand(-1, -1, self.decoder.coordinates))
            if self.keep_inputs:
                self.inputs = [*self.inputs[:index], x]
            valid = self.valid[index]
            before, new = valid[:, :, None].expand(-1, -1, q, -1), own[:, None].expand(-1, valid.shape[1], -1, -1)
            allowed = torch.cat([before, new], dim=-1)
            read = None if self.chosen is None else self.chosen.read(index, allowed.shape[-1])
            if read is not None:
                allowed = allowed & read[:, None]
            mask, weight = allowed, self.weight[index]
            if self.decoder.eager or weight is not None:
                mask = self.decoder.additive(allowed, x)
                mask = mask if weight is None else mask + self.decoder.log_weight(weight, mask)
            held.only, shown = (None, mask) if read is None or q > 1 else narrowed(allowed, mask)
            entered = x
            x = self.decoder.layers[index](
                x,
                attention_mask=shown,
                position_ids=place if self.decoder.coordinates == 1 else None,
                past_key_values=held,
                use_cache=True,
                position_embeddings=rotation,
            )
            if self.chosen is not None:
                self.chosen.look(index, entered, place, held, mask)
            self.valid[index] = torch.cat([valid, there.expand(-1, valid.shape[1], -1)], dim=-1)
        self.fed = self.fed + length
        return x

    def reorder(self, order: Tensor) -> None:
        """Row i becomes what row `order[i]` (R,) was, with all that was fed to it."""
        same = torch.equal(self.rows[order], self.rows)  # copies of one prompt: what stands before is alike
        self.rows, self.fed = self.rows[order], self.fed[order]
        for index, held in enumerate(self.held):
            at = order.to(held.device)
            held.reorder(at, same)
            self.valid[index] = self.valid[index][at]
            if not same:
                self.next_place[index], self.n[index] = self.next_place[index][at], self.n[index][at]
                self.weight[index] = None if self.weight[index] is None else self.weight[index][at]
                self.reads[index] = None if self.reads[index] is None else self.reads[index].at(at)
        if self.chosen is not None:
            self.chosen.reorder(order, None if same else self.reads)

    def caches(self) -> list[LayerCache]:
        """One for each layer: what stood before and what was fed, without the padding between."""
        return [self._closed(index) for index in range(len(self.held))]

    def _closed(self, index: int) -> LayerCache:
        keys, values = self.held[index].whole()
        groups = 1 if self.valid[index].shape[1] == 1 else self.decoder.heads // self.decoder.kv_heads
        there = self.valid[index][:, ::groups]  # (R, 1 or K, S)
        heads = there.sum(-1)
        longest = int(heads.max())
        order = (~there).long().argsort(dim=-1, stable=True)[..., :longest]
        weight, ragged = self.weight[index], self.held[index].ragged is not None
        if weight is not None:
            weight = F.pad(weight, (0, there.shape[-1] - weight.shape[-1]), value=1.0)
            weight = weight.gather(-1, order.expand(-1, weight.shape[1], -1))
        at = order.expand(-1, keys.shape[1], -1)[..., None].expand(-1, -1, -1, keys.shape[-1])
        keys, values = keys.gather(2, at), values.gather(2, at)
        if ragged:
            keys, values = packed(keys, heads), packed(values, heads)
        place = self.next_place[index] + self.fed.to(keys.device)
        counts = (heads.amax(1), place, self.n[index])
        heads = heads if ragged else None
        return LayerCache(keys, values, *counts, None, weight, heads=heads, reads=self.reads[index])


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

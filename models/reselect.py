"""What tokens of an answer read of caches that stay whole, where a method chooses that anew for each of them.

The layers up to the one whose attention is looked at read everything, so what a token chooses does not depend on what
the tokens before it chose: many can be fed at once, each under its own mask, as if they had come one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.compressors.base import KVCache, KVReducer, KVReduction
from foveate.models.decoder import Decoder, Held
from foveate.models.errors import CountMismatch, HostError
from foveate.models.ragged import exists

ANSWER_KIND = "answer_attention"
"""The signal of methods that reselect."""


@dataclass(frozen=True)
class Reads:
    """How one layer's cache is read. B rows, S entries behind the prompt.

    Attributes:
        methods: of each row, what chooses; None = its tokens read everything.
        count: of each row, visual entries that a token reads in this layer; 0 = all.
        visual: (B, S) bool, which entries are visual.
        source: (B, S) int64, where an entry stands in the layer that the row's method looks at; -1 = it is not there.
        length: (B,) entries of the prompt.
        seed: (B,) int64.
    """

    methods: tuple[KVReducer | None, ...]
    count: tuple[int, ...]
    visual: Tensor
    source: Tensor
    length: Tensor
    seed: Tensor

    def at(self, rows: Tensor) -> Reads:
        """Some rows."""
        index, rows = rows.tolist(), rows.to(self.visual.device)
        parts = {name: getattr(self, name)[rows] for name in ("visual", "source", "length", "seed")}
        return Reads(tuple(self.methods[i] for i in index), tuple(self.count[i] for i in index), **parts)

    def alike(self, other: Reads) -> bool:
        """Whether the same choice serves both layers."""
        near = self.visual.device == other.visual.device and self.visual.shape == other.visual.shape
        same = near and self.count == other.count and torch.equal(self.visual, other.visual)
        return same and torch.equal(self.source, other.source)


def looks_at(method: KVReducer, depth: int) -> int:
    """The layer whose attention a method reselects by. Raises: HostError where it asks for anything else."""
    asked = method.signals(depth)
    if {signal.kind for signal in asked} != {ANSWER_KIND} or len(asked) != 1:
        raise HostError(
            f"{method.name}: reselects by {ANSWER_KIND} of one layer, and asks for {sorted(map(str, asked))}"
        )
    return next(iter(asked)).layer


@dataclass(frozen=True)
class _Group:
    """Rows of one layer that are asked about together, whose visual entries (S,) stand alike."""

    method: KVReducer
    count: int
    visual: Tensor
    rows: Tensor


class Reselection:
    """What the tokens fed behind some caches read.

    Args:
        decoder: the opened model.
        reads: of each layer.
    """

    def __init__(self, decoder: Decoder, reads: Sequence[Reads]) -> None:
        self.decoder = decoder
        self._now: Tensor | None = None  # (R, Q, W) attention of the tokens fed last, in the layer looked at
        self._before: Tensor | None = None  # (R, W) the same of the token before these
        self._kept: dict[int, Tensor] = {}  # layer -> (R, S) what the token fed last read there
        self._sort(reads)

    def _sort(self, reads: Sequence[Reads]) -> None:
        self.reads, depth = list(reads), len(reads)
        self._lookers: list[list[tuple[KVReducer, list[int]]]] = [[] for _ in reads]
        for method in dict.fromkeys(m for m in self.reads[0].methods if m is not None):
            rows = [row for row, other in enumerate(self.reads[0].methods) if other == method]
            self._lookers[looks_at(method, depth)].append((method, rows))
        self._leader: list[int] = []  # of each layer, the first of those before it that read alike
        for layer, each in enumerate(self.reads):
            near = layer > 0 and each.alike(self.reads[layer - 1])
            self._leader.append(self._leader[-1] if near else layer)
        self._groups = {layer: _grouped(self.reads[layer]) for layer in set(self._leader)}

    def begin(self, tokens: int) -> None:
        """So many tokens are fed to each row."""
        first = self.reads[0]
        self._before = None if self._now is None else self._now[:, -1]
        width = max(each.visual.shape[1] for each in self.reads)
        self._now = torch.zeros(len(first.count), tokens, width, device=first.visual.device)
        self._anew = torch.zeros(self._now.shape[:2], dtype=torch.bool, device=first.visual.device)
        self._made: dict[int, Tensor] = {}

    def look(self, layer: int, x: Tensor, place: Tensor, held: Held, mask: Tensor) -> None:
        """Takes in the attention of the tokens in a layer that has run, for the rows whose methods look at it.

        Args:
            layer: which layer.
            x: (R, Q, D) its input.
            place: (R, Q) position ids.
            held: its cache.
            mask: (R, 1 or heads, Q, S or more) what the layer masked with.
        """
        decoder, visual = self.decoder, self.reads[layer].visual
        for method, rows in self._lookers[layer]:
            every = (x, place, held.whole()[0], mask, visual)
            x_, place_, keys_, mask_, visual_ = (_rows(part, rows) for part in every)
            place_ = place_[..., None].expand(-1, -1, decoder.coordinates)
            q = decoder.rotated(layer, x_, place_, "q").unflatten(1, (decoder.kv_heads, -1))
            logits = (q @ keys_[:, :, None].transpose(-1, -2)).float().flatten(1, 2)
            logits = logits * decoder.layers[layer].self_attn.scaling
            mask_ = decoder.additive(mask_, logits) if mask_.dtype == torch.bool else mask_
            paid = (logits + mask_).softmax(-1).mean(1)  # (r, Q, S or more)
            width = min(paid.shape[2], visual_.shape[1])
            self._take(method, rows, paid[..., :width].masked_fill(~visual_[:, None, :width], 0))

    def _take(self, method: KVReducer, rows: list[int], paid: Tensor) -> None:
        self._arrive(paid.device)
        self._now[rows, :, : paid.shape[2]] = paid
        now, first = self._now[rows], self._before is None
        before = torch.zeros_like(now[:, :1]) if first else self._before[rows, None]
        stands = method.stands(now.flatten(0, 1), torch.cat([before, now[:, :-1]], dim=1).flatten(0, 1))
        anew = ~stands.view(now.shape[:2])
        anew[:, 0] |= first
        self._anew[rows] = anew

    def _arrive(self, device: torch.device) -> None:
        """Brings what is remembered to where a layer runs."""
        if self._now.device != device:
            self._now, self._anew = self._now.to(device), self._anew.to(device)
            self._before = None if self._before is None else self._before.to(device)

    def read(self, layer: int, width: int) -> Tensor | None:
        """(R, Q, width) bool, what each token reads of so many entries; None = everything."""
        leader = self._leader[layer]
        if not self._groups[leader]:
            return None
        if leader not in self._made:
            self._made[leader] = self._chosen(leader)
        read = self._made[leader][..., :width]
        return torch.nn.functional.pad(read, (0, width - read.shape[2]), value=True)

    def _chosen(self, layer: int) -> Tensor:
        """(R, Q, S) bool: anew where a token's attention has changed, else what the token before it read."""
        reads = self.reads[layer]
        self._arrive(reads.visual.device)
        (b, s), q = reads.visual.shape, self._now.shape[1]
        read = torch.ones(b, q, s, dtype=torch.bool, device=reads.visual.device)
        for group in self._groups[layer]:
            anew, own = self._anew[group.rows], read[group.rows]  # (g, Q), (g, Q, S)
            row, token = anew.nonzero(as_tuple=True)
            if len(row):
                own[row, token] = self._asked(group, layer, group.rows[row], token)
            latest = torch.where(anew, torch.arange(q, device=anew.device), -1).cummax(1).values[..., None]
            filled = own.gather(1, latest.clamp(min=0).expand_as(own))
            if layer in self._kept:
                filled = torch.where(latest < 0, self._kept[layer][group.rows][:, None], filled)
            read[group.rows] = filled
        self._kept[layer] = read[:, -1]
        return read

    def _asked(self, group: _Group, layer: int, rows: Tensor, token: Tensor) -> Tensor:
        """(m, S) bool: what the method chooses for some tokens of some rows, (m,) each."""
        reads, visual, m = self.reads[layer], group.visual, len(rows)
        source = reads.source[rows, : len(visual)]
        paid = self._now[rows, token].gather(1, source.clamp(min=0)).masked_fill((source < 0) | ~visual, 0)
        nothing = paid.new_zeros(m, 1, len(visual), 0)
        cache = KVCache(nothing, nothing, visual, reads.seed[rows], {}, layer)
        cache = replace(cache, signals={s.key: paid for s in group.method.signals(len(self.reads))})
        reduction = group.method.reduce(cache, group.count)
        checked(group.method, reduction, cache, (group.count,))
        if reduction.into is not None or reduction.count is not None:
            raise CountMismatch(f"{group.method.name}: reselects, so entries neither merge nor differ in number")
        behind = torch.arange(reads.visual.shape[1], device=visual.device) >= len(visual)  # padding, or tokens fed
        return behind.repeat(m, 1).scatter_(1, reduction.keep[:, 0], True)

    def reorder(self, order: Tensor, reads: Sequence[Reads] | None) -> None:
        """Row i becomes what row `order[i]` (R,) was; `reads` where these change with it."""
        self._now = None if self._now is None else self._now[order.to(self._now.device)]
        self._kept = {layer: kept[order.to(kept.device)] for layer, kept in self._kept.items()}
        if reads is not None:
            self._sort(reads)


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    """Some rows of x; all are not copied."""
    return x if len(rows) == x.shape[0] else x[rows]


def _grouped(reads: Reads) -> list[_Group]:
    """The rows that read a part of a layer, those of one standing together."""
    found: dict[tuple, list[int]] = {}
    for row, (method, count) in enumerate(zip(reads.methods, reads.count, strict=True)):
        if method is not None and count:
            visual = reads.visual[row, : int(reads.length[row])]
            found.setdefault((method, count, visual.cpu().numpy().tobytes()), []).append(row)
    return [
        _Group(
            method,
            count,
            reads.visual[rows[0], : int(reads.length[rows[0]])],
            torch.tensor(rows, device=reads.visual.device),
        )
        for (method, count, _), rows in found.items()
    ]


def narrowed(allowed: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One token's entries side by side: (R, M) which of all, each row's own first; and what masks these.

    Args:
        allowed: (R, 1 or heads, 1, S) bool, which it may see.
        mask: (R, 1 or heads, 1, S) of all.
    """
    there = allowed.any(dim=1)[:, 0]
    order = (~there).long().argsort(dim=-1, stable=True)[:, : int(there.sum(-1).max())]
    return order, mask.gather(-1, order[:, None, None].expand(-1, mask.shape[1], -1, -1))


def checked(method: KVReducer, reduction: KVReduction, view: KVCache, budgets: Sequence[int]) -> Tensor:
    """(b, K) entries that stay in each head. Raises: CountMismatch."""
    keep, s = reduction.keep, view.visual.numel()
    if keep.shape[:2] != view.keys.shape[:2]:
        raise CountMismatch(f"{method.name}: kept {tuple(keep.shape)} of a cache {tuple(view.keys.shape)}")
    m, text = keep.shape[2], s - int(view.visual.sum())
    heads = torch.full(keep.shape[:2], m, device=keep.device) if reduction.count is None else reduction.count
    used = exists(heads, m)
    in_range = bool(((keep >= 0) & (keep < s) | ~used).all()) and bool(((keep < 0) | used).all())
    ascending = bool(((keep[..., 1:] > keep[..., :-1]) | ~used[..., 1:]).all())
    words = (~view.visual)[keep.clamp(0, s - 1)] & used
    if not in_range or not ascending or not bool((words.sum(-1) == text).all()):
        raise CountMismatch(f"{method.name}: kept {tuple(keep.shape)} must ascend and hold all {text} text entries")
    visual, limit = heads - text, torch.tensor(budgets, device=keep.device)
    if bool((visual > limit).any()) or (bool((visual < limit).any()) and not method.adaptive):
        raise CountMismatch(
            f"{method.name}: kept {visual.tolist()} visual entries; asked for {list(budgets)} in each row"
        )
    return heads

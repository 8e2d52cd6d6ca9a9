"""Delivers the signals that methods ask for, and charges the rows for them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foveate.compressors.base import Compressor, Reducer
from foveate.compressors.choosing import rank
from foveate.compressors.signals import LEVELS, Signal
from foveate.models import signals as compute
from foveate.models.decoder_signals import DECODER_KINDS, At
from foveate.models.errors import HostError
from foveate.models.frames import FRAME_KINDS, frame_means, frame_numbers
from foveate.models.glimpse import glimpse_flops, glimpse_query, level_blocks, vectors_on_grid
from foveate.models.ledger import decoder_signal_flops, encoder_signal_flops
from foveate.models.prefill import Prefill
from foveate.models.tower import EncoderGroup
from foveate.models.visual import carry_signal, groups, on_grid

if TYPE_CHECKING:
    from foveate.models.decoder import Stream
    from foveate.models.passes import Pass

STATES = "block_states"
CLS_STATES = "cls_states"
BEHIND_TOWER = (*compute.ATTENTION_KINDS, STATES, CLS_STATES)
"""Kinds that are read in a block of the tower by methods standing behind it."""

Trace = tuple[EncoderGroup, int]
"""Where a unit went through the tower: its group behind the last block, and its number there."""


class Asker:
    """The signals of one pass. Up to the projector, `views` are numbers of views in the pass, see `Pass.views`.

    The tower sees each frame of a video by itself. What it says of its tokens is one frame behind the other: attention
    of CLS adds up to one in each frame, and tokens of different frames pay each other none.

    Args:
        of: the pass; its ledgers are charged.
    """

    def __init__(self, of: Pass) -> None:
        self.of, self.host = weakref.proxy(of), of.host  # so that a pass that is let go frees its tensors at once
        self._text: dict[int, Tensor] = {}
        self._ranks: dict[int, Tensor] = {}  # row -> of each place in the grid of its views together
        self._phrases: dict[int, tuple[list[str], Tensor]] = {}

    def fork(self, of: Pass, rows: Sequence[int]) -> Asker:
        """The same for a pass of some of the rows; questions already embedded stay so."""
        other = Asker(of)
        other._text = {new: self._text[old] for new, old in enumerate(rows) if old in self._text}
        other._phrases = {new: self._phrases[old] for new, old in enumerate(rows) if old in self._phrases}
        return other

    def charge(self, views: Sequence[int], stage: str, flops: int) -> None:
        """The same FLOPs for signals of each view on its row's ledger."""
        for view in views:
            self.of.ledger[self.of.views[view][0]].add(stage, "signals", flops)

    def in_block(self, compressor: Reducer) -> Callable[[EncoderGroup, int], dict[str, Tensor]]:
        """For the tower: what a method standing in a block gets."""

        def give(group: EncoderGroup, layer: int) -> dict[str, Tensor]:
            tower, grid, out = self.host.tower, group.riders.grid, {}
            for block, asked in compute.by_layer(compressor, tower.depth, layer, compute.ATTENTION_KINDS).items():
                kinds = sorted({s.kind for s in asked})
                kept, here = group.inputs[block], block == layer
                q, k = (group.q, group.k) if here else compute.tower_attention(tower, block, kept, kinds, grid)
                flops = encoder_signal_flops(self.host.shape.vit, kinds, kept.x.shape[1], here)
                self.charge(self.of.lanes_at(group.views), "encoder", flops)
                for signal in asked:
                    _, value = compute.tower_signal(tower, signal.kind, block, q, k, kept.bias, grid)
                    out[signal.key] = carry_signal(signal.kind, value, group.history.since(block))
            out |= self.text(compressor, self.of.lanes_at(group.views), group.x[:, tower.first :], "encoder")
            return out

        return give

    def behind_tower(self, compressor: Compressor, views: Sequence[int], x: Tensor, stage: str) -> dict[str, Tensor]:
        """For a group of views behind the tower, whose features before the projector are x (b, n, D)."""
        depth, out = self.host.tower.depth, {}
        with_cls = compressor.takes_cls and self.host.tower.hands_cls and len(self.of.units[views[0]]) == 1
        for block, asked in compute.by_layer(compressor, depth, depth - 1, BEHIND_TOWER).items():
            out |= self.of_block(views, block, asked, stage, with_cls)
        out |= {signal.key: x for signal in compressor.signals(depth) if signal.kind == "features"}
        return out | self.text(compressor, views, x, stage)

    def of_block(
        self, views: Sequence[int], block: int, asked: Sequence[Signal], stage: str, with_cls: bool = False
    ) -> dict[str, Tensor]:
        """Signals of one block of the tower for views with equal counts, whatever way each of them went."""
        units = [unit for view in views for unit in self.of.units[view]]
        found: dict[str, dict[int, Tensor]] = {signal.key: {} for signal in asked}
        for _, members in groups([id(self.of.traces[unit][0]) for unit in units]):
            members = [units[m] for m in members]
            values = self._block(members, block, asked, stage, with_cls)
            for key, value in values.items():
                found[key] |= zip(members, value, strict=True)
        kinds = {signal.key: signal.kind for signal in asked}
        frames: Callable[[str, int], Tensor] = lambda key, view: compute.of_frames(  # noqa: E731
            kinds[key], [found[key][unit] for unit in self.of.units[view]]
        )
        return {key: torch.stack([frames(key, view) for view in views]) for key in found}

    def _block(
        self, units: Sequence[int], block: int, asked: Sequence[Signal], stage: str, with_cls: bool
    ) -> dict[str, Tensor]:
        """Signals of one block for units of one encoder group, for the tokens that left the tower."""
        tower, group = self.host.tower, self.of.traces[units[0]][0]
        index = torch.tensor([self.of.traces[unit][1] for unit in units], device=group.x.device)
        kept, history, out = group.inputs[block].at(index), group.history.at(index), {}
        if states := [signal.key for signal in asked if signal.kind == STATES]:
            out |= dict.fromkeys(states, self._states(group, index, block, with_cls))
        if of_cls := [signal.key for signal in asked if signal.kind == CLS_STATES]:
            out |= dict.fromkeys(of_cls, self._cls_states(group, index, block, with_cls))
        asked = [signal for signal in asked if signal.kind not in (STATES, CLS_STATES)]
        if not asked:
            return out
        kinds, grid = sorted({signal.kind for signal in asked}), group.riders.grid
        q, k = compute.tower_attention(tower, block, kept, kinds, grid)
        flops = encoder_signal_flops(self.host.shape.vit, kinds, kept.x.shape[1], False)
        self.charge(self.of.lanes_at(units), stage, flops)
        for signal in asked:
            cls, value = compute.tower_signal(tower, signal.kind, block, q, k, kept.bias, grid)
            value = carry_signal(signal.kind, value, history.since(block))
            axis = 1 if signal.kind == "keys" else -1
            out[signal.key] = torch.cat([cls, value], dim=axis) if with_cls else value
        return out

    def _states(self, group: EncoderGroup, index: Tensor, block: int, with_cls: bool) -> Tensor:
        """What a block made of the tokens that left the tower, (b, n, merge * C): kept anyway, so free of charge."""
        tower, x = self.host.tower, self.host.tower.behind(group, block)[index]
        value = tower.tokens(x[:, tower.first :], group.riders.grid)
        value = carry_signal(STATES, value, group.history.at(index).since(block + 1))
        return torch.cat([x[:, : tower.first], value], dim=1) if with_cls else value

    def _cls_states(self, group: EncoderGroup, index: Tensor, block: int, with_cls: bool) -> Tensor:
        """The state of CLS behind a block, or the mean where none is handed on, for each token that left: as free."""
        tower, tokens = self.host.tower, self._states(group, index, block, with_cls)
        one = tower.behind(group, block)[index, :1] if tower.hands_cls else tokens.mean(dim=1, keepdim=True)
        return one.expand_as(tokens)

    def cls_attention(self, view: int, stage: str) -> np.ndarray:
        """(n,) float32: attention of CLS in the last block on a view's tokens behind the tower, mean over heads.

        The block has just run: its queries and keys are at hand.
        """
        each = [self._cls_attention(view, unit, stage) for unit in self.of.units[view]]
        return each[0] if len(each) == 1 else np.concatenate(each)

    def _cls_attention(self, view: int, unit: int, stage: str) -> np.ndarray:
        """The same of one unit of the view."""
        tower, (group, number) = self.host.tower, self.of.traces[unit]
        bias, block = group.inputs[-1].bias, tower.depth - 1
        m = group.k.shape[2]
        self.charge([view], stage, encoder_signal_flops(self.host.shape.vit, ["cls_attention"], m, at_hand=True))
        if tower.hands_cls and bias is None and not group.history.steps:  # as the tower left it
            q, k = compute.numbers(group.q[number, :, 0]), compute.numbers(group.k[number])
            return compute.mean_softmax((k @ q[:, :, None])[..., 0], tower.scale)[1:]
        index = torch.tensor([number], device=self.host.device)
        bias, grid = None if bias is None else bias[index], group.riders.grid
        _, value = compute.tower_signal(tower, "cls_attention", block, group.q[index], group.k[index], bias, grid)
        return compute.numbers(carry_signal("cls_attention", value, group.history.at(index).since(block)).mean(1)[0])

    def text(self, compressor: Compressor, views: Sequence[int], x: Tensor, stage: str) -> dict[str, Tensor]:
        """What the method asks for of the questions of tokens x (b, n, D): vectors, or similarities to them."""
        out: dict[str, Tensor] = {}
        gives = {"question": self.question, "text_similarity": self.similarity}
        for kind, give in (gives | {"phrase_similarity": self.phrase_similarity}).items():
            keys = [s.key for s in compressor.signals(self.host.tower.depth) if s.kind == kind]
            if keys and self.host.text is None:
                raise HostError(f"{compressor.name}: needs a text tower beside the model; there is none")
            out |= dict.fromkeys(keys, give(views, x, stage)) if keys else {}
        return out

    def question(self, views: Sequence[int], x: Tensor, stage: str) -> Tensor:
        """(b, P) vectors of the questions of the rows of tokens x (b, n, D); embedded, and paid for, once."""
        return self._questions([self.of.views[view][0] for view in views], stage)

    def similarity(self, views: Sequence[int], x: Tensor, stage: str) -> Tensor:
        """(b, n) cosine of tokens x (b, n, D) with the questions of their rows.

        A question is embedded, and paid for, once.
        """
        rows = [self.of.views[view][0] for view in views]
        found = self._questions(rows, stage)
        self.charge(views, stage, self.host.text.similarity_flops(x.shape[1]))
        return self.host.text.similarity(x, self.host.tower.norm_out, found)

    def _questions(self, rows: Sequence[int], stage: str) -> Tensor:
        """(b, P) vectors of the questions of some rows, each of which is charged once."""
        text = self.host.text
        fresh = [row for row in dict.fromkeys(rows) if row not in self._text]
        if fresh:
            vectors, flops = text.embed([self.of.rows[row].question for row in fresh])
            for row, vector, cost in zip(fresh, vectors, flops, strict=True):
                self._text[row] = vector
                self.of.ledger[row].add(stage, "question embedding", cost)
        found = [self._text[row] for row in rows]
        return torch.stack(found) if len(found) > 1 else found[0][None]

    def phrase_similarity(self, views: Sequence[int], x: Tensor, stage: str) -> Tensor:
        """(b, 3, n) likeness of tokens x (b, n, D) to the phrases of their rows' questions, by kind of phrase.

        A phrase is embedded, and paid for, once.
        """
        text, rows = self.host.text, [self.of.views[view][0] for view in views]
        for row in dict.fromkeys(rows):
            if row not in self._phrases:
                kinds, vectors, flops = text.embed_phrases(self.of.rows[row].question)
                self._phrases[row] = kinds, vectors
                self.of.ledger[row].add(stage, "phrase embedding", flops)
        found = [self._phrases[row] for row in rows]
        for view, (kinds, _) in zip(views, found, strict=True):
            self.charge([view], stage, text.similarity_flops(x.shape[1], len(kinds)))
        return text.phrase_similarity(x, self.host.tower.norm_out, found)

    def in_prefill(self, prefill: Prefill, compressor: Reducer, rows: Tensor, now: int) -> dict[str, Tensor]:
        """For a group of rows standing before layer `now` of the decoder."""
        decoder, out = self.host.decoder, {}
        for layer, asked in compute.by_layer(compressor, decoder.depth, now, tuple(DECODER_KINDS)).items():
            has_run = layer < now
            cache = prefill.caches[layer] if has_run else None
            stream = cache.stream if has_run else prefill.stream
            for kind in sorted({signal.kind for signal in asked}):
                at = rows.to(decoder.devices[layer])
                value = DECODER_KINDS[kind](At(decoder, layer, stream, cache, at)).to(rows.device)
                for row in rows.tolist():
                    n, visual = int(stream.length[row]), int(stream.n[row])
                    flops = decoder_signal_flops(self.host.shape.decoder, kind, n, visual, has_run)
                    self.of.ledger[row].add("prefill", "signals", flops)
                value = self._carried(prefill, rows.tolist(), layer, kind, value) if has_run else value
                out |= dict.fromkeys([signal.key for signal in asked if signal.kind == kind], value)
        for signal in compressor.signals_at(now, decoder.depth):
            if signal.kind == "cls_rank":
                out[signal.key] = torch.stack([self._cls_rank(prefill, row) for row in rows.tolist()]).to(rows.device)
            if signal.kind == "glimpse_query":
                token = compressor.glimpse(signal.layer + 1)
                out[signal.key] = glimpse_query(prefill, rows, signal.layer, token).to(rows.device)
                for row in rows.tolist():
                    flops = glimpse_flops(self.host.shape.decoder, prefill.entries[row][signal.layer], signal.layer)
                    self.of.ledger[row].add("prefill", "signals", flops)
            if signal.kind == "spoken":
                stream = prefill.caches[signal.layer].stream
                made = [self._spoken(compressor, stream, row) for row in rows.tolist()]
                out[signal.key] = torch.stack(made).to(rows.device)
            if signal.kind == "tower_levels":
                out[signal.key] = torch.stack([self._levels(prefill, row) for row in rows.tolist()]).to(rows.device)
            if signal.kind in FRAME_KINDS:
                frames = [self._of_frames(prefill, row, signal.kind) for row in rows.tolist()]
                out[signal.key] = torch.stack(frames).to(rows.device)
        return out

    def _cls_rank(self, prefill: Prefill, row: int) -> Tensor:
        """(n,) rank of one row's visual tokens by the encoder's CLS attention, which is read and paid for once."""
        if row not in self._ranks:
            asked = [Signal("cls_attention")]
            each = [self.of_block([view], self.host.tower.depth - 1, asked, "prefill") for view in self.of.lanes[row]]
            value = torch.cat([signal["cls_attention"].mean(1)[0] for signal in each])
            share = rank(value[None])[0] / len(value)
            parts = share.split([signal["cls_attention"].shape[-1] for signal in each])
            before, now = self.of.of_row("encoder", row), self.of.of_row("projector", row)
            maps = [on_grid(part, old, new.grid) for part, old, new in zip(parts, before, now, strict=True)]
            self._ranks[row] = torch.cat(maps)
        position = prefill.stream.position[row, prefill.stream.visual[row]].to(self._ranks[row].device)
        return self._ranks[row][position.clamp(min=0)].masked_fill(position < 0, 1)

    def _spoken(self, compressor: Reducer, stream: Stream, row: int) -> Tensor:
        """(D,) what a method makes of one row's words."""
        words = stream.x[row, : int(stream.length[row])][~stream.visual[row, : int(stream.length[row])]]
        self.of.ledger[row].add("prefill", "signals", compressor.spoken_flops(len(words)))
        return compressor.spoken(words)

    def _levels(self, prefill: Prefill, row: int) -> Tensor:
        """(4, n, C) what blocks of the tower made of one row's visual tokens; kept anyway, so free of charge."""
        before, now, made = self.of.of_row("encoder", row), self.of.of_row("projector", row), []
        at = prefill.stream.position[row, prefill.stream.visual[row]].to(self.host.device)
        for block in level_blocks(self.host.tower.depth, LEVELS):
            asked = [Signal(STATES, block)]
            each = [self.of_block([view], block, asked, "prefill")[STATES][0] for view in self.of.lanes[row]]
            full = torch.cat([vectors_on_grid(*one, new.grid) for *one, new in zip(each, before, now, strict=True)])
            made.append(full[at.clamp(min=0)].masked_fill(at[:, None] < 0, 0))
        return torch.stack(made)

    def _of_frames(self, prefill: Prefill, row: int, kind: str) -> Tensor:
        """A signal of the frames of one row for each of its visual tokens: (n, d) or (n,)."""
        seen, now = self.of.of_row("encoder", row), self.of.of_row("projector", row)
        value = frame_means(seen)
        if kind == "frame_similarity":
            text = self.host.text
            if text is None:
                raise HostError(f"{kind}: needs a text tower beside the model; there is none")
            self.of.ledger[row].add("prefill", "signals", text.similarity_flops(len(value)))
            states = value.to(self.host.dtype)[None]
            value = text.similarity(states, self.host.tower.norm_out, self._questions([row], "prefill"))[0]
        number = frame_numbers([s.grid for s in seen], [s.grid for s in now]).to(value.device)
        stream = prefill.stream
        return value[number[stream.position[row, stream.visual[row]].clamp(min=0).to(value.device)]]

    @staticmethod
    def _carried(prefill: Prefill, rows: Sequence[int], layer: int, kind: str, value: Tensor) -> Tensor:
        """A signal of an earlier layer, for what became of its tokens since."""
        steps = [[r for at, r in prefill.history[row] if at > layer] for row in rows]
        if not any(steps):
            return value
        return torch.cat([carry_signal(kind, value[i : i + 1], s) for i, s in enumerate(steps)])

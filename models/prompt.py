"""The decoder's input: text embeddings with each row's visual tokens in their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foveate.models.decoder import Decoder, Stream
from foveate.models.inputs import Row, padded
from foveate.models.visual import VisualState


def embed_prompts(decoder: Decoder, rows: Sequence[Row], states: Sequence[VisualState]) -> Stream:
    """Prompts, right-padded. A row without visual tokens is its text alone.

    Position ids: text before the picture from 0; visual tokens at their places behind it (a protected CLS first); the
    text behind starts where the picture's span ends: methods that keep positions leave gaps, those that renumber none.
    """
    ids, length = padded([row.before + row.after for row in rows], decoder.model.embed_tokens.weight.device)
    text = decoder.embed(ids)
    words = [line[:n] for line, n in zip(text, length.tolist(), strict=True)]
    parts = [_row(*each) for each in zip(rows, states, words, strict=True)]
    x, place, size, position = (pad_sequence([p[k] for p in parts], batch_first=True) for k in range(4))
    device = x.device
    return Stream(
        x=x,
        length=torch.tensor([len(p[0]) for p in parts], device=device),
        place=place,
        next_place=torch.tensor([int(p[1][-1]) + 1 for p in parts], device=device),
        start=torch.tensor([p[4] for p in parts], device=device),
        n=torch.tensor([s.n for s in states], device=device),
        size=size,
        position=position,
    )


def _row(row: Row, state: VisualState, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """One row's embeddings, places, sizes and positions (all (S, ...)), and the index of its first visual token."""
    front, back, n = len(row.before), len(row.after), state.n
    cls = state.cls[None] if state.cls is not None and state.cls_stays and n else text[:0]
    start = front + len(cls)
    first = torch.arange(start, device=text.device)
    behind = torch.arange(back, device=text.device) + start + (state.span if n else 0)
    place = torch.cat([first, state.place.to(text.device) + start, behind])
    x = torch.cat([text[:front], cls, state.x if n else text[:0], text[front:]])
    size, position = torch.ones(len(x), device=text.device), torch.full((len(x),), -1, device=text.device)
    size[start : start + n], position[start : start + n] = state.size, state.position
    return x, place, size, position, start

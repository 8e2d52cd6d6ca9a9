"""The decoder's input: text embeddings, with what became of each row's visual tokens where they stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foveate.compressors.base import Grid
from foveate.models.decoder import Stream
from foveate.models.inputs import NEWLINE, Row
from foveate.models.visual import VisualState

if TYPE_CHECKING:
    from foveate.models.host import Host


def embed_prompts(host: Host, rows: Sequence[Row], states: Sequence[Sequence[VisualState]]) -> Stream:
    """Prompts, right-padded.

    Slots stand in the order of the entries whose places they take. Position ids are those of the uncompressed prompt,
    gaps and all, unless a method wants them numbered anew. A row without any visual token is its words alone, without
    newlines, numbered from 0.

    Args:
        host: whose decoder.
        rows: as laid out.
        states: of each row: its views behind the projector.
    """
    device = host.device
    texts = [_text(row, any(s.n for s in each)) for row, each in zip(rows, states, strict=True)]
    ids = np.concatenate([row.ids[at] for row, at in zip(rows, texts, strict=True)])
    words = host.decoder.embed(torch.from_numpy(ids).to(device)).split([len(at) for at in texts])
    parts = [_row(host, *each) for each in zip(rows, states, words, texts, strict=True)]
    length = torch.tensor([len(p["x"]) for p in parts], device=device)
    whole = {name: pad_sequence([p[name] for p in parts], batch_first=True) for name in parts[0] if name != "next"}
    return Stream(length=length, next_place=torch.tensor([p["next"] for p in parts], device=device), **whole)


def _text(row: Row, shows: bool) -> np.ndarray:
    """Entries that are text; a row that shows nothing has no newlines."""
    return row.text if shows else row.text[row.position[row.text] != NEWLINE]


def _row(
    host: Host, row: Row, states: Sequence[VisualState], words: Tensor, text: np.ndarray
) -> dict[str, Tensor | int]:
    """One row's part of a stream, each (S, ...), and the position id behind it ("next")."""
    device = words.device
    seen = [state for state in states if state.n]
    stand = [_standing(row, view, state) for view, state in enumerate(states) if state.n]
    if seen and row.shape.newlines:
        words[torch.from_numpy(row.position[text] == NEWLINE).to(device)] = host.newline()
    cls = [view for view, state in enumerate(states) if state.n and state.cls_stays and state.cls is not None]
    other = np.concatenate([text, np.array([row.cls[view] for view in cls], np.int64)]) if cls else text
    fixed = torch.from_numpy(other).to(device)
    entry = torch.cat([fixed, *(at for at, _ in stand)])
    order = entry.argsort(stable=True)
    parts = {
        "x": [words, *(states[view].cls[None] for view in cls), *(s.x for s in seen)],
        "place": [torch.from_numpy(row.place[other]).to(device), *(place for _, place in stand)],
        "size": [torch.ones(len(fixed), device=device), *(s.size for s in seen)],
        "position": [torch.full_like(fixed, -1), *_positions(states)],
    }
    if host.shape.deepstack:
        none = words.new_zeros(len(fixed), host.shape.deepstack, words.shape[-1])
        parts["extra"] = [none, *(s.extra for s in seen)]
    made: dict[str, Tensor | int] = {name: torch.cat(each)[order] for name, each in parts.items()}
    made |= {"entry": entry[order], "visual": order >= len(fixed), "next": row.next_place}
    if not seen or any(state.renumber for state in seen):
        made["next"] = len(order)
        made["place"] = torch.arange(len(order), device=device)[:, None].expand(-1, row.place.shape[1])
    return made


def _standing(row: Row, view: int, state: VisualState) -> tuple[Tensor, Tensor]:
    """The entries (n,) whose places a view's tokens take, and their position ids (n, P)."""
    device, entries = state.origin.device, row.entries[view]
    first = torch.from_numpy(row.place[row.first[view]]).to(device)
    return torch.from_numpy(entries).to(device)[state.origin], state.place + first


def _positions(states: Sequence[VisualState]) -> list[Tensor]:
    """Positions of each view's tokens in the grid of all views together, see `joined`."""
    at, found = 0, []
    for state in states:
        if state.n:
            found.append(state.position if not at else torch.where(state.position < 0, -1, state.position + at))
        at += state.grid[0] * state.grid[1] * state.grid[2]
    return found


def joined(grids: Sequence[Grid], whole: bool) -> tuple[Grid, bool]:
    """The grid that a row's visual entries refer to, and whether they are all of it.

    One view has its own; views of equal grid lie behind each other; else it is a line without neighbourhood.

    Args:
        grids: of each view.
        whole: every view is all of its grid.
    """
    if len(set(grids)) == 1:
        t, h, w = grids[0]
        return (t * len(grids), h, w), whole
    return (1, 1, sum(t * h * w for t, h, w in grids)), False

"""Which heads look at what is read: how often a head's strongest key lies on the word that is being written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from foveate.models.behind import Continuation
from foveate.models.host import Host
from foveate.models.inputs import Row
from foveate.models.passes import Pass
from foveate.tasks.base import Box
from foveate.tasks.registry import get_task

TASKS = ("reading", "documents")
"""Built-in tasks whose answers stand written on the picture, with a box for each character."""

COVERED = 0.25
"""Share of a token's patch that a word must cover for the token to be the word's."""


@dataclass(frozen=True)
class Written:
    """A picture with one text on it that is asked for.

    Attributes:
        picture: (H, W, 3) uint8.
        question: whose answer is the text.
        text: as it is written.
        boxes: of its characters.
    """

    picture: np.ndarray
    question: str
    text: str
    boxes: tuple[Box, ...]


def written(split: str = "host-train") -> Iterator[Written]:
    """Pictures of the built-in tasks without end, one question each, tasks in turn."""
    tasks, index = [get_task(name) for name in TASKS], 0
    while True:
        for task in tasks:
            sample = task.sample(split, index)
            found = [turn for turn in sample.turns if turn.answers and len(turn.at) == len(turn.answers[0])]
            if found:
                turn = found[index % len(found)]
                yield Written(sample.image, turn.question, turn.answers[0], turn.at)
        index += 1


@torch.no_grad()
def head_scores(host: Host, pictures: Iterable[Written], new_tokens: int = 16) -> tuple[Tensor, int]:
    """Visual score of each query head, and how many produced tokens it rests on.

    The model answers greedily. For each token that it produces and that is part of the text, a head whose strongest key
    in that step lies on one of the text's visual tokens gets 1 / their number; a picture's scores are averaged over
    pictures (Wang et al., ICCV 2025, https://arxiv.org/abs/2506.05344).

    Args:
        host: an opened model.
        pictures: what it is asked.
        new_tokens: most tokens of an answer.
    Returns:
        (L, h) float32, and the number of tokens.
    Raises:
        ValueError: no token that the model produced is part of what it was asked for.
    """
    total = torch.zeros(host.decoder_depth, host.decoder.heads)
    number = tokens = 0
    for each in pictures:
        hits, counted = _of_one(host, each, new_tokens)
        total, number, tokens = total + hits, number + 1, tokens + counted
    if not tokens:
        raise ValueError(f"{host.name}: wrote nothing of the texts on {number} pictures; no head can be scored")
    return total / number, tokens


def _of_one(host: Host, asked: Written, new_tokens: int) -> tuple[Tensor, int]:
    """Hits (L, h) on one picture, and the tokens that counted."""
    p = host.open([asked.picture], [asked.question])
    p.decode(max_new_tokens=new_tokens)
    ids = p.generated[0]
    parts = [host.inputs.text([token]).lower() for token in ids]
    steps = [step for step, part in enumerate(parts) if part and part in asked.text.lower()]
    entries = entries_of(host, p.rows[0], asked.boxes)
    hits = torch.zeros(host.decoder_depth, host.decoder.heads)
    if not steps or not len(entries):
        return hits, 0
    for layer, strongest in enumerate(_strongest(p, ids)):
        stream = p.caches[layer].stream
        known = stream.entry[0, : int(stream.length[0])]
        on_text = torch.isin(known, torch.from_numpy(entries).to(known.device))
        on_text = torch.cat([on_text, on_text.new_zeros(len(ids))])  # and none of the answer's own keys
        hits[layer] = on_text[strongest[:, steps]].sum(1).cpu() / len(entries)
    return hits, len(steps)


def _strongest(p: Pass, ids: Sequence[int]) -> Iterator[Tensor]:
    """Layer by layer: (h, tokens) the key with most attention in the step that produced each token of an answer."""
    decoder = p.host.decoder
    behind = Continuation(decoder, p.caches, torch.tensor([0]), keep_inputs=True)
    if len(ids) > 1:
        behind.feed(torch.tensor([ids[:-1]], device=p.logits.device))
    for layer, cache in enumerate(p.caches):
        stream, last = cache.stream, int(cache.length[0]) - 1
        x, place, keys = stream.x[:, last : last + 1], stream.place[:, last : last + 1], cache.keys
        if len(ids) > 1:
            x, keys = torch.cat([x, behind.inputs[layer]], dim=1), behind.held[layer].keys
            later = cache.next_place[:, None] + torch.arange(len(ids) - 1, device=place.device)
            place = torch.cat([place, later[..., None].expand(-1, -1, decoder.coordinates)], dim=1)
        q = decoder.rotated(layer, x, place, "q").unflatten(1, (decoder.kv_heads, -1))
        logits = (q @ keys[:, :, None].transpose(-1, -2)).float()  # (1, K, g, tokens, S + tokens - 1)
        at = torch.arange(len(ids), device=logits.device)[:, None]
        ahead = torch.arange(logits.shape[-1], device=logits.device) > last + at
        yield logits.masked_fill(ahead, -torch.inf).argmax(-1)[0].flatten(0, 1)


def entries_of(host: Host, row: Row, boxes: Sequence[Box]) -> np.ndarray:
    """The prompt entries whose patches lie on these boxes of the row's one picture, however its family frames it.

    A white text area on black goes the picture's own way through the image processor.
    """
    height, width = row.pictures[0].size
    area = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        area[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = 255
    marked, found = host.inputs.row(area, row.question, 0), []
    for entries, view in zip(row.entries, marked.views, strict=True):
        light = torch.from_numpy(view.pixels[..., 0].astype(np.float32) / 255).reshape(1, *view.pixels.shape[-3:-1])
        share = adaptive_avg_pool2d(light, view.grid[1:]).flatten().numpy()
        found.append(entries[(share >= COVERED) & (entries >= 0)])
    return np.concatenate(found)

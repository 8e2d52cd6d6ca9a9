"""Losses of methods that the answers behind them cannot teach, since what they decide has no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.compressors.base import Tokens
from foveate.compressors.learned import Learned
from foveate.models.answers import judged
from foveate.models.behind import Continuation
from foveate.models.distilling.pairs import Answers, Batch
from foveate.models.head_scores import entries_of
from foveate.models.ragged import exists
from foveate.models.visual import groups

CROSSED = 0.1
"""Weight of the binary cross-entropy beside Dice's loss."""

HELD = 0.8
"""Share of an answer's attention to the picture that its tokens are taken to hold, where no boxes are known."""


def glimpsed(method: Learned, batch: Batch, answers: Answers, rows: Sequence[int]) -> dict[str, Tensor]:
    """What a method's own token is taught, all tokens in place: to answer, and which tokens the answer stands on.

    Zeng et al., 2025, https://arxiv.org/abs/2508.01548: cross-entropy of the answer behind the token, Dice's loss and
    `CROSSED` * binary cross-entropy of the method's logits with the tokens under the answer's boxes. Without boxes
    these are the fewest that hold `HELD` of the answer's own attention in the layer that is read, and their neighbours.

    Args:
        method: has `glimpse`, `logits` and one site, behind the layer that it reads.
        batch: whose teacher has read the prompts.
        answers: of all rows.
        rows: which rows learn.
    """
    p, decoder, index = batch.teacher, batch.host.decoder, torch.tensor(rows, device=answers.ids.device)
    ids, length = answers.ids[index], answers.length[index]
    start = torch.zeros(len(rows), 1, p.opened.stream.x.shape[-1], dtype=p.opened.stream.x.dtype, device=ids.device)
    states = torch.cat([start, decoder.embed(ids)], dim=1)
    behind = Continuation(decoder, p.caches, index).run(states, added=method.glimpse(decoder.depth))
    logprob, _ = judged(decoder.logits(behind), ids, length, batch.host.ends)
    losses = {"glimpse_answer": -(logprob / (length + 1)).mean()}
    looks = [_look(method, batch, answers, list(each)) for each in _alike(batch, rows)]
    return losses | {"glimpse_mask": torch.stack(looks).sum() / len(rows)}


def attended(method: Learned, batch: Batch, answers: Answers, rows: Sequence[int]) -> dict[str, Tensor]:
    """How far a method's scores are from the attention that answers pay visual tokens in the decoder's middle layer.

    Cross-entropy of that attention, all tokens in place, with the softmax of the method's logits.

    Args:
        method: has `logits` and one site.
        batch: whose teacher has read the prompts.
        answers: of all rows.
        rows: which rows learn.
    """
    found = []
    for each in _alike(batch, rows):
        tokens, index, _ = _seen(method, batch, each)
        attention = _attended(batch, answers, index, batch.host.decoder.depth // 2)
        share = attention / attention.sum(1, keepdim=True)
        found.append(-(share * method.logits(tokens).log_softmax(1)).sum())
    return {"attended": torch.stack(found).sum() / len(rows)}


Further = Callable[[Learned, Batch, Answers, Sequence[int]], dict[str, Tensor]]
FURTHER: dict[str, Further] = {"glimpse": glimpsed, "attended": attended}
"""Names in `Learned.further` -> losses by name, each of weight 1."""


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """(B,) Dice's loss of probabilities, 0 where they are the mask, and `CROSSED` * cross-entropy; both (B, N)."""
    probability, mask = logits.sigmoid(), wanted.to(logits)
    dice = 1 - (2 * (probability * mask).sum(1) + 1) / (probability.sum(1) + mask.sum(1) + 1)
    return dice + CROSSED * F.binary_cross_entropy_with_logits(logits, mask, reduction="none").mean(1)


def holding(attention: Tensor, grid: tuple[int, int, int], share: float = HELD) -> Tensor:
    """(B, N) bool: the fewest tokens of a grid that hold a share of attention (B, N), and their neighbours."""
    order = attention.argsort(dim=1, descending=True, stable=True)
    sorted_ = attention.gather(1, order)
    before = sorted_.cumsum(1) - sorted_
    held = torch.zeros_like(attention).scatter_(1, order, (before < share * attention.sum(1, keepdim=True)).float())
    maps = held.view(-1, *grid[1:]) if held.shape[1] == grid[0] * grid[1] * grid[2] else held[:, None]
    return F.max_pool2d(maps[:, None], 3, stride=1, padding=1).view_as(held) > 0


def _alike(batch: Batch, rows: Sequence[int]) -> list[list[int]]:
    """Rows with equal numbers of tokens on equal grids."""
    opened = batch.teacher.opened
    keys = [(opened.visual[row][0], opened.grids[row]) for row in rows]
    return [[rows[m] for m in members] for _, members in groups(keys)]


def _seen(method: Learned, batch: Batch, rows: Sequence[int]) -> tuple[Tokens, Tensor, int]:
    """Visual tokens of rows that are alike as a method would get them, the rows, and the layer before which."""
    p, index = batch.teacher, torch.tensor(rows, device=batch.teacher.opened.stream.x.device)
    opened, stream = p.opened, p.opened.stream
    n, grid = opened.visual[rows[0]][0], opened.grids[rows[0]]
    layer = method.sites(n, n - 1, batch.host.decoder.depth)[0][0]
    at = (index[:, None], stream.visual[index].nonzero()[:, 1].view(len(rows), n))
    signals = p.ask.in_prefill(opened, method, index, layer)
    tokens = Tokens(stream.x[at], stream.size[at], stream.position[at], grid, opened.seeds[index], signals)
    return tokens, index, layer


def _look(method: Learned, batch: Batch, answers: Answers, rows: Sequence[int]) -> Tensor:
    """Sum of the mask's loss over rows that are alike."""
    p, (tokens, index, layer) = batch.teacher, _seen(method, batch, rows)
    stream, grid, n = p.opened.stream, tokens.grid, tokens.n
    at = (index[:, None], stream.visual[index].nonzero()[:, 1].view(len(rows), n))
    wanted = holding(_attended(batch, answers, index, layer - 1), grid)
    for number, row in enumerate(rows):
        lesson = batch.lessons[row]
        if lesson.at and isinstance(lesson.image, np.ndarray):
            known = torch.from_numpy(entries_of(batch.host, p.rows[row], lesson.at)).to(stream.entry.device)
            inside = torch.isin(stream.entry[at][number], known)
            wanted[number] = inside if bool(inside.any()) else wanted[number]
    return mask_loss(method.logits(tokens), wanted).sum()


@torch.no_grad()
def _attended(batch: Batch, answers: Answers, rows: Tensor, layer: int) -> Tensor:
    """(b, n) attention in one layer that the tokens of rows' answers pay visual entries, mean over heads and tokens."""
    p, decoder = batch.teacher, batch.host.decoder
    cache, visual = p.caches[layer], p.opened.stream.visual[rows]
    n = int(visual[0].sum())
    last = cache.length[rows] - 1
    x, place = cache.stream.x[rows, last][:, None], cache.stream.place[rows, last][:, None]
    ids, length = answers.ids[rows], answers.length[rows]
    if ids.shape[1]:
        behind = Continuation(decoder, p.caches, rows, keep_inputs=True)
        behind.feed(ids)
        later = cache.next_place[rows][:, None] + torch.arange(ids.shape[1], device=ids.device)
        x = torch.cat([x, behind.inputs[layer]], dim=1)
        place = torch.cat([place, later[..., None].expand(-1, -1, decoder.coordinates)], dim=1)
    q = decoder.rotated(layer, x, place, "q").unflatten(1, (decoder.kv_heads, -1))
    logits = (q @ cache.keys[rows][:, :, None].mT).float() * decoder.layers[layer].self_attn.scaling
    there = exists(cache.length[rows], cache.keys.shape[2])
    attention = logits.masked_fill(~there[:, None, None, None], float("-inf")).softmax(-1).mean((1, 2))  # (b, Q, S)
    written = exists(length + 1, x.shape[1])
    attention = (attention * written[..., None]).sum(1) / written.sum(1, keepdim=True)
    return attention.gather(1, visual.nonzero()[:, 1].view(len(rows), n))

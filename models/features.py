"""Token features: what a pass reveals to a controller between the stages. Training and serving share this file.

    group    shown before         computed from
    block1   the encoder stage    patch tokens behind the first ViT block's attention
    encoder  the outside stage    tokens behind the encoder stage, and the CLS attention that led to them
    layer1   the prefill stage    the last prompt token behind decoder layer 0

Cosines lie in [-1, 1], all else in [0, 1]. A row without visual tokens has zeros; so have the text features where the
host has no text tower.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.compressors.signals import Signal
from foveate.models.ledger import encoder_signal_flops, last_query_flops
from foveate.models.signals import last_query
from foveate.models.visual import VisualState, groups
from foveate.plans.cost import lm_head

if TYPE_CHECKING:
    from foveate.models.llava import LlavaHost
    from foveate.models.passes import Pass

SAMPLE = 64
"""Tokens at even distances that participation and text similarity look at in `block1`."""

TEXT = ("text_mean", "text_peak", "text_spread")
TOKEN_FEATURES: dict[str, tuple[str, ...]] = {
    "block1": ("neighbour_cosine", "edge_share", "common_cosine", "background_share", "participation", *TEXT),
    "encoder": (
        *("neighbour_cosine", "edge_share", "common_cosine", "background_share"),
        *("cls_entropy", "cls_top", "cls_peak", "cls_reach", *TEXT),
    ),
    "layer1": ("visual_mass", "entropy", "top", "peak", "reach", "lens_margin", "lens_entropy"),
}
"""Group -> names, in order.

* neighbour_cosine, edge_share: mean cosine of tokens side by side; share of these pairs below 0.5.
* common_cosine, background_share: mean cosine of all pairs; share of tokens with cosine above 0.9 to the mean token.
* participation: participation ratio of the tokens' covariance, over their number.
* (cls_)entropy, top, peak, reach: attention of CLS, or of the last prompt token, on visual tokens, scaled to sum 1,
  mean over heads: entropy over log n; the part on the tenth of tokens that gets most; the part on one; root mean square
  distance from its centre in half diagonals of the grid.
* visual_mass: share of the last prompt token's attention that visual tokens get.
* text_*: mean, maximum, standard deviation of the tokens' cosine with the question.
* lens_*: the next token as layer 0 would say it: first less second probability; entropy over log V.
"""


@torch.no_grad()
def reveal(p: Pass, group: str) -> list[np.ndarray]:
    """Each row's features at the stop that a group belongs to, (d,) float32; runs the pass up to there.

    Args:
        p: a pass that stands before the group's stage; its ledgers are charged under "features".
        group: a key of `TOKEN_FEATURES`.

    Raises:
        ValueError: unknown group.
    """
    if group not in TOKEN_FEATURES:
        raise ValueError(f"features: unknown group {group!r}; known: {', '.join(TOKEN_FEATURES)}")
    out = np.zeros((len(p), len(TOKEN_FEATURES[group])), np.float32)
    if group == "layer1":
        p.peek()
        keys = [(visual[0],) for visual in p.opened.visual]
    else:
        p.peek_encoder()
        if group == "encoder" and "encoder" not in p.states:
            p.encode()
        keys = [(s.n, s.grid, s.whole) for s in p.states["peek" if group == "block1" else "encoder"]]
    of = {"block1": _block1, "encoder": _encoder, "layer1": _layer1}[group]
    for key, rows in groups(keys):
        if key[0]:
            out[rows] = of(p, rows).float().cpu().numpy()
    return list(out)


def feature_flops(host: LlavaHost, n_text: int | None = None) -> dict[str, int]:
    """FLOPs of each group for one uncompressed row, which compressed rows do not exceed.

    Args:
        host: the model.
        n_text: prompt entries that are text; None = as many as decoder and text tower have positions for.
    """
    n, vit, decoder = host.n_visual, host.shape.vit, host.shape.decoder
    entries = host.decoder.config.max_position_embeddings if n_text is None else n + n_text + int(host.cls_stays)
    cls = encoder_signal_flops(vit, ["cls_attention"], n + int(vit.cls), False)
    found = {
        "block1": sum(_own(host, "block1", n)),
        "encoder": sum(_own(host, "encoder", n)) + cls,
        "layer1": sum(_own(host, "layer1", n)) + last_query_flops(decoder, entries, True),
    }
    if host.text is not None:
        question = host.text.flops(host.text.limit if n_text is None else host.question_tokens(n_text))
        found["block1"] += question + host.text.similarity_flops(min(n, SAMPLE))
        found["encoder"] += question + host.text.similarity_flops(n)
    return found


def _own(host: LlavaHost, group: str, n: int) -> tuple[int, int]:
    """Matrix and other FLOPs of a group on n visual tokens, signals apart."""
    vit, decoder = host.shape.vit, host.shape.decoder
    if group == "layer1":
        return lm_head(decoder, 1), 10 * decoder.heads * n + 8 * decoder.vocab
    gram = 2 * min(n, SAMPLE) ** 2 * vit.dim if group == "block1" else 0
    return gram, 12 * n * vit.dim + 10 * n


def _charge(p: Pass, rows: list[int], group: str, n: int) -> None:
    matrix, other = _own(p.host, group, n)
    for row in rows:
        p.ledger[row].add("features", group, matrix)
        p.ledger[row].add("features", group, other, "other")


def _block1(p: Pass, rows: list[int]) -> Tensor:
    states = [p.states["peek"][row] for row in rows]
    x, n = torch.stack([s.x for s in states]), states[0].n
    some = x[:, torch.linspace(0, n - 1, min(n, SAMPLE), device=x.device).round().long()]
    apart = some.float() - some.float().mean(1, keepdim=True)
    gram = apart @ apart.transpose(1, 2)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    participation = trace.square() / gram.square().sum(dim=(1, 2)).clamp(min=1e-12) / some.shape[1]
    _charge(p, rows, "block1", n)
    return torch.stack([*_alike(x, states[0]), participation, *_text(p, rows, some)], dim=1)


def _encoder(p: Pass, rows: list[int]) -> Tensor:
    states = [p.states["encoder"][row] for row in rows]
    x = torch.stack([s.x for s in states])
    asked = [Signal("cls_attention")]
    attention = p.ask.of_block(rows, p.host.encoder_depth - 1, asked, "features")["cls_attention"].mean(1)
    _charge(p, rows, "encoder", states[0].n)
    position = torch.stack([s.position for s in states])
    return torch.stack(
        [*_alike(x, states[0]), *_concentration(attention, position, states[0].grid), *_text(p, rows, x)], dim=1
    )


def _layer1(p: Pass, rows: list[int]) -> Tensor:
    decoder, cache = p.host.decoder, p.opened.caches[0]
    stream = cache.stream
    index = torch.tensor(rows, device=stream.x.device)
    attention = last_query(decoder, stream, cache, 0, index).mean(1)
    for row in rows:
        flops = last_query_flops(p.host.shape.decoder, p.opened.entries[row][0], has_run=True)
        p.ledger[row].add("features", "signals", flops)
    _charge(p, rows, "layer1", attention.shape[1])
    position = stream.position[
        index[:, None], stream.start[index][:, None] + torch.arange(attention.shape[1], device=index.device)
    ]
    reach = [
        _concentration(attention[i : i + 1], position[i : i + 1], p.opened.grids[row]) for i, row in enumerate(rows)
    ]
    said = decoder.logits(p.opened.stream.x[index, stream.length[index] - 1]).softmax(-1)
    two = said.topk(2, dim=-1).values
    lens = [two[:, 0] - two[:, 1], torch.special.entr(said).sum(1) / math.log(said.shape[1])]
    return torch.stack([attention.sum(1), *(torch.cat(column) for column in zip(*reach, strict=True)), *lens], dim=1)


def _alike(x: Tensor, of: VisualState) -> list[Tensor]:
    """neighbour_cosine, edge_share, common_cosine, background_share of tokens x (b, n, D), each (b,)."""
    unit = F.normalize(x.float(), dim=-1)
    n = unit.shape[1]
    if of.whole:
        _, h, w = of.grid
        plane = unit.view(len(unit), h, w, -1)
        right, down = (plane[:, :, 1:] * plane[:, :, :-1]).sum(-1), (plane[:, 1:] * plane[:, :-1]).sum(-1)
        near = torch.cat([right.flatten(1), down.flatten(1)], dim=1)
    else:
        near = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    near = near if near.shape[1] else near.new_ones(len(unit), 1)  # a single token has no neighbour
    total = unit.sum(1)
    common = (total.square().sum(-1) - n) / max(1, n * (n - 1)) if n > 1 else torch.ones_like(total[:, 0])
    background = (unit * F.normalize(x.float().mean(1), dim=-1)[:, None]).sum(-1) > 0.9
    return [near.mean(1), (near < 0.5).float().mean(1), common, background.float().mean(1)]


def _concentration(attention: Tensor, position: Tensor, grid: Grid) -> list[Tensor]:
    """entropy, top, peak, reach of attention (b, n) on tokens at positions (b, n) of a grid, each (b,)."""
    share = attention / attention.sum(1, keepdim=True).clamp(min=1e-12)
    n = share.shape[1]
    entropy = torch.special.entr(share).sum(1) / math.log(max(2, n))
    top = share.topk(max(1, n // 10), dim=1).values.sum(1)
    at = position.clamp(min=0)
    places = torch.stack([at // grid[2] % grid[1] / grid[1], at % grid[2] / grid[2]], dim=-1)
    weight = share[..., None]
    centre = (weight * places).sum(1, keepdim=True)
    reach = (weight * (places - centre).square()).sum(dim=(1, 2)).sqrt() / math.sqrt(0.5)
    return [entropy, top, share.amax(1), reach]


def _text(p: Pass, rows: list[int], x: Tensor) -> list[Tensor]:
    """text_mean, text_peak, text_spread of tokens x (b, n, D), each (b,)."""
    if p.host.text is None:
        return [torch.zeros(len(rows), device=x.device)] * len(TEXT)
    cosine = p.ask.similarity(rows, x, "features")
    return [cosine.mean(1), cosine.amax(1), cosine.std(1, correction=0)]

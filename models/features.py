"""Token features: what a pass reveals to a controller between the stages. Training and serving share this file.

    group    shown before         computed from
    block1   the encoder stage    patch tokens behind the first ViT block's attention
    encoder  the outside stage    tokens behind the encoder stage, and the CLS attention that led to them
    layer1   the prefill stage    the last prompt token behind decoder layer 0

Cosines lie in [-1, 1], all else in [0, 1]. A row without visual tokens has zeros.

All decisions together must cost a few percent of a small model's pass. At that size the number of calls counts, not
their arithmetic: rows are looked at one by one, in numpy, and nothing is computed that the pass has at hand. The
question's embedding is left to the methods that want it: a text tower alone would cost as much as all of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveate.compressors.base import Grid
from foveate.models.decoder_signals import last_state_attention
from foveate.models.ledger import encoder_signal_flops, last_query_flops
from foveate.models.signals import numbers, read
from foveate.models.visual import VisualState
from foveate.plans.cost import lm_head

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.inputs import PromptShape
    from foveate.models.passes import Pass

SAMPLE = 32
"""Tokens at even distances that participation looks at."""

TOKEN_FEATURES: dict[str, tuple[str, ...]] = {
    "block1": ("neighbour_cosine", "edge_share", "common_cosine", "background_share", "participation"),
    "encoder": (
        *("neighbour_cosine", "edge_share", "common_cosine", "background_share"),
        *("cls_entropy", "cls_top", "cls_peak", "cls_reach"),
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
* lens_*: the next token as layer 0 would say it: first less second probability; entropy over log V.
"""

_add = np.add.reduce  # without the checks of np.sum, which would cost as much as the sum


@torch.no_grad()
def reveal(p: Pass, group: str, rows: Sequence[int] | None = None) -> list[np.ndarray]:
    """Features of some rows at the stop that a group belongs to, (d,) float32 each; runs the pass up to there.

    Args:
        p: a pass that stands before the group's stage; the ledgers of the rows are charged under "features".
        group: a key of `TOKEN_FEATURES`.
        rows: whose; None = all rows'.

    Raises:
        ValueError: unknown group.
    """
    if group not in TOKEN_FEATURES:
        raise ValueError(f"features: unknown group {group!r}; known: {', '.join(TOKEN_FEATURES)}")
    if group == "layer1":
        p.peek()
        left, of = [visual[0] for visual in p.opened.visual], _layer1
    else:
        p.peek_encoder()
        if group == "encoder" and "encoder" not in p.states:
            p.encode()
        left, of = p.left("peek" if group == "block1" else "encoder"), _block1 if group == "block1" else _encoder
    width = len(TOKEN_FEATURES[group])
    asked = range(len(p)) if rows is None else rows
    return [np.array(_of_row(p, of, row) if left[row] else [0.0] * width, np.float32) for row in asked]


def _of_row(p: Pass, of: Callable[[Pass, int], list[float]], row: int) -> list[float]:
    """A row's features; of several views, the mean by their tokens."""
    if of is _layer1:
        return of(p, row)
    lanes = [lane for lane in p.lanes[row] if p.tokens[lane].n]  # of a view that only shows padding nothing is left
    if len(lanes) == 1:
        return of(p, lanes[0])
    return np.average([of(p, lane) for lane in lanes], axis=0, weights=[p.tokens[lane].n for lane in lanes]).tolist()


def feature_flops(host: Host, shape: PromptShape | None = None) -> dict[str, int]:
    """FLOPs of each group for one uncompressed row, which compressed rows do not exceed.

    Args:
        host: the model.
        shape: of the row; None = one usual picture, and as many words as the decoder has positions for.
    """
    at, vit, decoder = shape or host.prompt_shape(1), host.shape.vit, host.shape.decoder
    cls = len(at.grids) * int(host.cls_stays)
    entries = host.decoder.config.max_position_embeddings if shape is None else at.n_visual + at.n_text + cls
    each = [t * h * w for t, h, w in at.grids]
    found = {group: sum(sum(_own(host, group, n)) for n in each) for group in ("block1", "encoder")}
    frames = [(t, vit.rows(h * w)) for t, h, w in at.grids]
    found["encoder"] += sum(t * encoder_signal_flops(vit, ["cls_attention"], m, at_hand=True) for t, m in frames)
    found["layer1"] = sum(_own(host, "layer1", at.n_visual)) + last_query_flops(decoder, entries, has_run=True)
    return found


def _own(host: Host, group: str, n: int) -> tuple[int, int]:
    """Matrix and other FLOPs of a group on n tokens of one view (of a row, in the decoder), signals apart."""
    vit, decoder = host.shape.vit, host.shape.decoder
    if group == "layer1":
        return lm_head(decoder, 1) + 8 * n, 10 * decoder.heads * n + 8 * decoder.vocab
    dim = vit.dim * vit.merge
    common = 2 * n * dim + 4 * dim
    beside = 2 * min(n, SAMPLE) ** 2 * dim if group == "block1" else 8 * n
    return common + beside, 12 * n * dim + 10 * n


def _charge(p: Pass, row: int, group: str, n: int) -> None:
    matrix, other = _own(p.host, group, n)
    p.ledger[row].add("features", group, matrix)
    p.ledger[row].add("features", group, other, "other")


def _block1(p: Pass, lane: int) -> list[float]:
    state = p.states["peek"][lane]
    x = numbers(state.x)
    some = x[_spaced(len(x))]
    apart = some - _ones(len(some)) @ some / np.float32(len(some))
    gram = apart @ apart.T
    trace, square = float(np.vdot(apart, apart)), float(np.vdot(gram, gram))
    _charge(p, p.views[lane][0], "block1", len(x))
    return [*_alike(x, state), trace**2 / max(square, 1e-12) / len(some)]


def _encoder(p: Pass, lane: int) -> list[float]:
    state = p.states["encoder"][lane]
    x = numbers(state.x)
    attention = p.ask.cls_attention(lane, "features")
    _charge(p, p.views[lane][0], "encoder", len(x))
    return [*_alike(x, state), *_concentration(attention, _places(state))]


def _layer1(p: Pass, row: int) -> list[float]:
    opened, decoder = p.opened, p.host.decoder
    n, entries = opened.visual[row][0], opened.entries[row][0]
    visual = opened.stream.visual[row, :entries].cpu().numpy()
    attention = last_state_attention(opened, row)[visual]
    p.ledger[row].add("features", "signals", last_query_flops(p.host.shape.decoder, entries, has_run=True))
    _charge(p, row, "layer1", n)
    said = read(opened.stream.x[row, entries - 1], decoder.model.norm, decoder.head)
    mass = float(_add(attention))
    if len(p.lanes[row]) == 1 and opened.whole[row]:
        places = _whole_grid(opened.grids[row])
    else:
        places = _placed(opened.stream.position[row, :entries].cpu().numpy()[visual], opened.grids[row])
    return [mass, *_concentration(attention, places), *_lens(said)]


def _lens(logits: np.ndarray) -> tuple[float, float]:
    """lens_margin and lens_entropy of logits (V,), which are overwritten."""
    first = int(logits.argmax())
    logits -= logits[first]
    weight = np.exp(logits)
    total = float(_add(weight))
    entropy = math.log(total) - float(weight @ np.maximum(logits, -1e4)) / total  # 0 times -inf would be NaN
    weight[first] = 0
    return (1.0 - float(np.maximum.reduce(weight))) / total, entropy / math.log(len(weight))


def _alike(x: np.ndarray, of: VisualState) -> list[float]:
    """neighbour_cosine, edge_share, common_cosine, background_share of tokens x (n, D)."""
    n = len(x)
    scale = 1 / np.sqrt(np.maximum(np.vecdot(x, x), 1e-24))
    unit = x * scale[:, None]
    if of.whole:
        cells = unit.reshape(*of.grid, -1)
        right = np.vecdot(cells[:, :, 1:], cells[:, :, :-1])
        down = np.vecdot(cells[:, 1:], cells[:, :-1])
        near = np.concatenate([right.ravel(), down.ravel()])
    else:
        near = np.vecdot(unit[1:], unit[:-1])
    if not len(near):  # a single token has no neighbour
        return [1.0, 0.0, 1.0, 1.0]
    total, mean = scale @ x, _ones(n) @ x  # sums of unit tokens and of tokens
    common = (float(total @ total) - n) / (n * (n - 1))  # the square of a sum holds the products of all pairs
    background = unit @ mean > 0.9 * math.sqrt(mean @ mean)
    edges = np.count_nonzero(near < 0.5)
    return [float(_add(near)) / len(near), edges / len(near), common, np.count_nonzero(background) / n]


def _concentration(attention: np.ndarray, places: np.ndarray) -> list[float]:
    """entropy, top, peak, reach of attention (n,) on tokens at places (n, 4)."""
    share = attention.astype(np.float64)
    n = len(share)
    share /= max(float(_add(share)), 1e-12)
    entropy = -float(share @ np.log(np.maximum(share, 1e-30))) / math.log(max(2, n))
    y, x, yy, xx = (share @ places).tolist()
    reach = math.sqrt(max(yy + xx - y * y - x * x, 0.0) / 0.5)
    most = max(1, n // 10)
    share.partition(n - most)  # in place: nothing behind this line needs the order
    tenth = share[n - most :]
    return [entropy, float(_add(tenth)), float(np.maximum.reduce(tenth)), reach]


def _places(state: VisualState) -> np.ndarray:
    """(n, 4) float64: row and column from the grid's centre as parts of its sides, and both squared."""
    return _whole_grid(state.grid) if state.whole else _placed(state.position.cpu().numpy(), state.grid)


@lru_cache(maxsize=64)
def _whole_grid(grid: Grid) -> np.ndarray:
    return _placed(np.arange(grid[0] * grid[1] * grid[2]), grid)


def _placed(position: np.ndarray, grid: Grid) -> np.ndarray:
    at = np.maximum(position, 0)
    row, column = at // grid[2] % grid[1] / grid[1] - 0.5, at % grid[2] / grid[2] - 0.5
    return np.stack([row, column, row**2, column**2], axis=1)


@lru_cache(maxsize=64)
def _ones(n: int) -> np.ndarray:
    return np.ones(n, np.float32)


@lru_cache(maxsize=64)
def _spaced(n: int) -> np.ndarray:
    """Indices of at most `SAMPLE` of n tokens, at even distances."""
    return np.linspace(0, n - 1, min(n, SAMPLE)).round().astype(np.intp)

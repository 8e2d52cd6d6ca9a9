"""LLaVolta: runs of visual tokens become their mean before one decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import Grid, Reducer, Reduction, Tokens, scaled
from foveate.compressors.planes import check_whole, counts, side
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class LLaVolta(Reducer):
    """Average pooling of hidden states along the line of visual tokens, frame by frame.

    Paper:   Chen et al., NeurIPS 2024, https://arxiv.org/abs/2406.20092
    Code:    https://github.com/Beckschen/LLaVolta
    Formula: slot i = mean of tokens i c .. (i + 1) c - 1 in raster order, c = stride; its position id is the mean of
             theirs, truncated
    Shapes:  x (B, N, D) -> into, weight (B, N, J), J = 2, or 4 in squares
    Cost:    no matrix product: additions only.
    Differs: in the paper this is a curriculum for training the language model (strides 8, 8 -> 2, 2 -> 1 at layers 2,
             2, 16), and the finished model reads every token. Here no weight of the model is touched: this is its
             pooling, on the model as it is. A last run that is not full stays, the code drops its tokens. Counts that
             no stride gives are pooled adaptively, neighbouring runs then share a token. Runs end with their frame (in
             the code, their picture) where `count` is the same number for each.

    Args:
        layer: G, tokens are pooled at its input, as (number, depth of the paper's model). At `projector`, the code's
            layers 0 and -1, it has no meaning.
        cells: "runs" as published, or "squares": cells of a smaller grid, so that ids by three axes stay neighbours'
            (2 x 2 tokens then stand at the top left one).
    Raises:
        ValueError: `layer` is outside 1 .. depth - 1, `cells` is unknown, `count` is outside 1..N, or in squares not
            that of a smaller grid, or tokens are then not a whole one.
    """

    name = "llavolta"
    stages = ("projector", "prefill")
    positions = "mean"
    paper = "Chen et al., NeurIPS 2024, https://arxiv.org/abs/2406.20092"
    fidelity = "reference"

    layer: tuple[int, int] = (2, 32)
    cells: str = "runs"

    def __post_init__(self) -> None:
        if not 1 <= self.layer[0] < self.layer[1]:
            raise ValueError(f"llavolta: layer {self.layer[0]} is outside 1..{self.layer[1] - 1}")
        if self.cells not in ("runs", "squares"):
            raise ValueError(f"llavolta: cells {self.cells!r} is neither 'runs' nor 'squares'")

    def reachable(self, grid: Grid) -> Sequence[int]:
        return super().reachable(grid) if self.cells == "runs" else counts(grid)

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(scaled(self.layer, depth), count)]

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        frames, height, width = tokens.grid
        if self.cells == "runs":
            whole = tokens.n == frames * height * width and count % frames == 0
            frames = frames if whole else 1
            first, into, weight = pooled(tokens.n // frames, count // frames)
        else:
            check_whole(self.name, tokens)
            h, w = side(tokens.grid, count)
            if frames * h * w != count:
                raise ValueError(f"llavolta: count {count} is not that of a smaller grid of {tokens.grid}")
            (top, rows, row_weight), (left, columns, weight) = pooled(height, h), pooled(width, w)
            first = (top[:, None] * width + left).flatten()
            into = (rows[:, None, :, None] * w + columns[None, :, None]).flatten(2).flatten(0, 1)
            weight = (row_weight[:, None, :, None] * weight[None, :, None]).flatten(2).flatten(0, 1)
            into = into.masked_fill(weight == 0, -1)
        b, frame = tokens.x.shape[0], torch.arange(frames)[:, None]
        anchor = (first + frame * (tokens.n // frames)).flatten()
        into = torch.where(into < 0, -1, into + frame[..., None] * (count // frames)).flatten(0, 1)
        shared = (anchor, into, weight.repeat(frames, 1))
        return Reduction(*(part.to(tokens.x.device).expand(b, *part.shape) for part in shared))


def pooled(n: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of n tokens in a line: first token of each of `count` runs, and the runs (n, 2) of each token, -1 = none, with
    its weights (n, 2) in them.

    Runs are of equal stride with a shorter last one where some stride gives so many, else run i is floor(i n / count)
    .. ceil((i + 1) n / count) - 1.
    """
    stride, run, token = -(-n // count), torch.arange(count), torch.arange(n)
    if -(-n // stride) == count:
        first, behind = run * stride, ((run + 1) * stride).clamp(max=n)
    else:
        first, behind = run * n // count, -(-(run + 1) * n // count)
    earliest = torch.searchsorted(behind, token, right=True)
    latest = torch.searchsorted(first, token, right=True) - 1
    into = torch.stack([earliest, torch.where(latest > earliest, latest, -1)], dim=1)
    weight = (1 / (behind - first).float())[into.clamp(min=0)].masked_fill(into < 0, 0)
    return first, into, weight

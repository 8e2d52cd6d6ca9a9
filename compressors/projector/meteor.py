"""METEOR, second stage: of several views of one scene keep the tokens that the other views do not already show."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import Selector, Tokens
from foveate.compressors.matching import rounded
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class MeteorFusion(Selector):
    """Drop the projected tokens that are most like those of the other views, all views together.

    Paper:   Liu et al., ICCV 2025, https://arxiv.org/abs/2507.20842
    Code:    announced at https://github.com/YuchenLiu98/METEOR, not released.
    Formula: R[n] = sum of cos(z[n], z[m]) over all tokens m of the other views; s = -R
    Shapes:  x (B, N, D) -> s (B, N) float32
    Cost:    no matrix product: the sum over a view is one vector.
    Differs: in the paper the views are several encoders, each with its projector; here they are the frames of the grid,
             seen by one; tokens without a place are one view more.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N.
    """

    name = "meteor"
    stages = ("projector",)
    modality = "video"
    positions = "renumber"
    paper = "Liu et al., ICCV 2025, https://arxiv.org/abs/2507.20842"
    fidelity = "reconstruction"

    def score(self, tokens: Tokens) -> Tensor:
        views, height, width = tokens.grid
        unit = normalize(tokens.x.float(), dim=-1)
        view = (tokens.position // (height * width)).masked_fill(tokens.position < 0, views)
        view = view.unsqueeze(-1).expand_as(unit)  # (B, N, D)
        within = unit.new_zeros(unit.shape[0], views + 1, unit.shape[2]).scatter_add_(1, view, unit)
        others = within.sum(dim=1, keepdim=True) - within.gather(1, view)
        return -rounded((unit * others).sum(dim=-1))

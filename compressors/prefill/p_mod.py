"""p-MoD: in the deeper layers a learned router lets most visual tokens go around the layer and come back."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import ranked
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.registry import register
from foveate.compressors.schedules import falling

ORDINARY = 0.85
"""A layer whose share is above this runs whole."""

SPREAD = 0.2
"""How far a token's weight can be from 1."""


class Routers(nn.Module):
    """One logit of a token for each layer but the first, which always runs whole; all start at zero.

    Args:
        width: D of the decoder's tokens.
        depth: layers of the decoder.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.zeros(depth - 1, width))
        self.bias = nn.Parameter(torch.zeros(depth - 1))

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """Inputs (B, N, D) of a layer -> (B, N)."""
        return linear(x, self.weight[layer - 1 : layer], self.bias[layer - 1 : layer])[..., 0]


def shares(depth: int, shift: float, floor: float = 0.0) -> list[float]:
    """Share of the visual tokens that each layer of a decoder gets: half a cosine, lifted; 1 where it runs whole."""
    found = [cos(pi * layer / max(1, depth - 1)) / 2 + shift for layer in range(depth)]
    return [1.0 if not layer or share > ORDINARY else max(share, floor) for layer, share in enumerate(found)]


def shift_of(depth: int, mean: float) -> float:
    """The largest shift at which layers get at most this share in the mean, where the least is min(0.15, mean / 2)."""
    low, high = -0.5, 1.5
    for _ in range(50):
        middle = (low + high) / 2
        fits = sum(shares(depth, middle, min(0.15, mean / 2))) <= mean * depth
        low, high = (middle, high) if fits else (low, middle)
    return low


@register
@dataclass(frozen=True)
class PMoD(Learned, Reducer):
    """A linear router in each deeper layer weighs visual tokens; the best run through it, the deeper the fewer.

    Paper:   Zhang et al., ICCV 2025, https://arxiv.org/abs/2412.04449
    Code:    https://github.com/MCG-NJU/p-MoD
    Formula: R[l] = cos(pi l / (L - 1)) / 2 + shift; above 0.85 layer l runs whole, else floor(max(R[l] N, count))
             tokens of largest w = 1 + 0.2 tanh(a[l] x + b[l]) run. With y = x + Attn(x), u = MLP(norm(y)): they leave
             as y + w u, the others as w x, words as y + u
    Shapes:  x (B, N, D) -> anchor (B, K), weight (B, N, 1) float32
    Cost:    2 N D FLOPs in each layer that does not run whole; keys and values of K tokens there.
    Differs: `count` is the least that a layer gets, 0.15 N in the code: layers above it get more. The code trains the
             whole decoder with its routers; here the decoder is the host's own and fixed, and the routers alone learn
             (D + 1 numbers a layer), from the host's answers, with no low-rank matrices beside them and no ratio that
             sinks during training. Nobody reads what the last layer makes of visual tokens, so its router gets no
             gradient. Untrained, every weight is 1 and the first tokens run. Layer 0 always runs whole; equal weights
             go to the lower index.

    Args:
        shift: beta of the paper. Above 0.5 no layer gets as few as `count`.
        mean: share of the tokens that a layer gets in the mean; the shift is then what it takes (see `shift_of`).
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `shift` is outside [-0.5, 1.35], where no layer would do otherwise than another, `mean` is outside
            (0, 1), or `count` is outside 1..N.
    """

    name = "p_mod"
    stages = ("prefill",)
    bypass = True
    paper = "Zhang et al., ICCV 2025, https://arxiv.org/abs/2412.04449"
    fidelity = "reference"

    shift: float = 0.5
    mean: float | None = None

    def __post_init__(self) -> None:
        if not -0.5 <= self.shift <= 0.5 + ORDINARY:
            raise ValueError(f"p_mod: shift {self.shift} is outside [-0.5, {0.5 + ORDINARY}]")
        if self.mean is not None and not 0 < self.mean < 1:
            raise ValueError(f"p_mod: mean {self.mean} is outside (0, 1)")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Routers(widths.decoder, widths.decoder_depth)

    def routed(self, depth: int) -> dict[int, float]:
        """Layer -> its share, of those that do not run whole; the last one never does."""
        shift = self.shift if self.mean is None else shift_of(depth, self.mean)
        return {layer: share for layer, share in enumerate(shares(depth, shift)) if share < 1}

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        layers = self.routed(depth)
        return falling(n, layers, [max(count, int(share * n + 1e-9)) for share in layers.values()])

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        layer = min(self.routed(self.loaded.depth)) + tokens.site
        weight = 1 + SPREAD * self.run(tokens.x, layer).float().tanh()  # (B, N)
        return Reduction(anchor=ranked(weight)[:, :count].sort(dim=-1).values, weight=weight.unsqueeze(-1))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return 2 * n * dim

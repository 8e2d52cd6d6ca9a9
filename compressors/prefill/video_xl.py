"""Video-XL: the video runs through the decoder in windows; behind every r tokens stands one more, which alone stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.registry import register
from foveate.compressors.tokens import Grid

RATIOS = (2, 4, 8, 16)
"""Visual tokens to one summary token."""


class Summary(nn.Module):
    """The summary token, and what its queries, keys and values are beside those that a layer makes of any token.

    All that is added is zero at first: the token is one like others then.

    Args:
        widths: of the host.
        rank: of what is added.
    """

    def __init__(self, widths: Widths, rank: int) -> None:
        super().__init__()
        size, depth = widths.head_dim or widths.decoder // widths.heads, widths.decoder_depth
        out = {"q": widths.heads * size, "k": widths.kv_heads * size, "v": widths.kv_heads * size}
        drawn = {part: torch.randn(depth, rank, widths.decoder) * widths.decoder**-0.5 for part in out}
        self.token = nn.Parameter(torch.zeros(widths.decoder))
        self.down = nn.ParameterDict({part: nn.Parameter(value) for part, value in drawn.items()})
        self.up = nn.ParameterDict({part: nn.Parameter(torch.zeros(depth, w, rank)) for part, w in out.items()})

    def forward(self, x: Tensor, layer: int, part: str) -> Tensor:
        """What a layer's projection "q", "k" or "v" reads (B, m, D) -> what is added to what it gives (B, m, width)."""
        return linear(linear(x, self.down[part][layer]), self.up[part][layer])

    def flops(self, rows: int) -> int:
        """Of that many summary tokens in all layers."""
        return 2 * rows * sum(value.numel() for value in (*self.down.values(), *self.up.values()))


@register
@dataclass(frozen=True)
class VideoXL(Learned, Reducer):
    """Visual tokens run in windows, a summary token behind every r of them; of a window its keys and values stay alone.

    Paper:   Shu et al., CVPR 2025, https://arxiv.org/abs/2409.14485
    Code:    https://github.com/VectorSpaceLab/Video-XL, videoxl/model/language_model/modeling_beacon.py
    Formula: summary token k stands behind visual token floor((k + 1) N / count) - 1; it reads t + the mean of the
             visual tokens since the summary token before, and in layer l its q, k and v are W x + B A x, with A and B
             of its own for each; an entry of a window sees the words before, all summary tokens of earlier windows, and
             what stands before it in its own; the question sees words and summary tokens. Places are numbered anew, 0,
             1, 2 ..., over what is there
    Shapes:  x (B, N, D) -> anchor (B, count), the token that each summary token stands behind
    Cost:    N + count entries run through every layer, attention within [what stays, one window]; each summary token 2
             R (3 D + width of q, k and v) FLOPs a layer more; keys and values of `count` entries stay
    Differs: the code's summary tokens read E[end] + t, with the embedding of an end token; in a decoder that is not
             trained along they told little of their window (`published`). q, k and v of summary tokens are copies of
             the layer's own with a learned change of rank R, the code trains full copies. One ratio for all windows,
             where the code's training draws one for each; a window is 4 frames by default, 10 in the code. Where r does
             not divide the tokens, runs differ by one, and a window ends at the last summary token within it. A picture
             is one short window. No interval follows what is shown.

    Args:
        frames: of a window.
        rank: R.
        published: summary tokens read E[end] + t.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `frames` or `rank` is below 1, or `count` is outside 1..N.
    """

    name = "video_xl"
    stages = ("prefill",)
    windowed = True
    positions = "renumber"
    gentle: ClassVar[float] = 0.25
    paper = "Shu et al., CVPR 2025, https://arxiv.org/abs/2409.14485"
    fidelity = "reference"

    frames: int = 4
    rank: int = 16
    published: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"video_xl: {name} {getattr(self, name)} is below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Summary(widths, self.rank)

    def reachable(self, grid: Grid) -> list[int]:
        n = grid[0] * grid[1] * grid[2]
        return sorted({max(1, round(n / ratio)) for ratio in RATIOS})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(1, count)]

    def window(self, n: int, frames: int) -> int:
        """Visual tokens of one window, of n that show so many frames."""
        return max(1, self.frames * n // frames)

    def stops(self, n: int, count: int) -> list[int]:
        """The visual tokens, of n, that summary tokens stand behind."""
        return [(k + 1) * n // count - 1 for k in range(count)]

    def summaries(self, x: Tensor, stops: Sequence[int], end: Tensor) -> Tensor:
        """(B, m, D) the summary tokens behind those at `stops` of a window's visual tokens (B, Q, D), the last one
        among them; `end` (D,) is the embedding of an end token."""
        own = self.loaded.token.to(x)
        if self.published:
            return (end.to(x) + own).expand(len(x), len(stops), -1)
        runs = [after - before for before, after in zip([-1, *stops], stops, strict=False)]
        return torch.stack([run.mean(1) for run in x.split(runs, dim=1)], dim=1) + own

    def added(self, x: Tensor, layer: int, part: str) -> Tensor:
        """What a summary token's "q", "k" or "v" has more than others; x (B, m, D) is what the projection reads."""
        return self.run(x, layer, part)

    def summary_flops(self, count: int) -> int:
        """Of `added` for so many summary tokens in all layers."""
        return self.loaded.flops(count)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        stops = torch.tensor(self.stops(tokens.n, count), device=tokens.x.device)
        into = torch.searchsorted(stops, torch.arange(tokens.n, device=stops.device))  # the run that a token is of
        into = into.expand(len(tokens.x), -1).unsqueeze(-1)
        return Reduction(stops.expand(len(tokens.x), -1), into, torch.zeros(into.shape, device=stops.device))

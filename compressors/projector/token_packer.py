"""TokenPacker: a coarse token looks at the fine ones that it stands over, as several blocks of the tower saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.compressors.base import Grid, Resampled, Resampler, Tokens
from foveate.compressors.blocks import Block, block_counts, block_of, padded, places_in_blocks, squares
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.levels import Level, level_signals, level_states
from foveate.compressors.networks import Attention, Mlp, copy_into, drawn, fits, heads_of, inner, linear_flops
from foveate.compressors.planes import check_whole, raster
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal

LEVELS = ((11, 23), (15, 23), (21, 23))
"""Blocks of CLIP-L, of whose 24 blocks 23 run, beside the last one."""


class Network(nn.Module):
    """Queries from one map, keys and values from all, attention within blocks, MLP.

    Args:
        source: C of the tokens that come.
        width: E of the attention.
        out: D of those that leave.
        maps: how many stand side by side in keys and values.
        residual: add the coarse tokens to what they read, and read nothing at first; where C and E are equal.
        projector: of the host, to start from with the residual.
    """

    def __init__(self, source: int, width: int, out: int, maps: int, residual: bool, projector: Projector = ()) -> None:
        super().__init__()
        self.residual = residual and source == width
        self.query = nn.Linear(source, width, bias=False)
        self.key, self.value = (Mlp(maps * source, width) for _ in range(2))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads_of(width, 128))
        self.mlp = Mlp(width, out)
        drawn(self)
        if self.residual:
            nn.init.zeros_(self.attention.out.weight)
            if fits(self.mlp.layers, projector):
                copy_into(self.mlp.layers, projector)

    def forward(self, x: Tensor, grid: Grid, block: Block, *levels: Tensor) -> Tensor:
        """(B, T H W, C) and other maps alike -> (B T, D, h, w)."""
        t, height, width = grid
        flat = [part.unflatten(1, (t, -1)).flatten(0, 1) for part in (*levels, x)]  # (B T, H W, C)
        maps = padded(flat[-1].mT.unflatten(2, (height, width)), block)
        cells = (maps.shape[2] // block[0], maps.shape[3] // block[1])
        low = interpolate(maps.float(), size=cells, mode="bilinear").to(x.dtype).flatten(2).mT
        many = torch.cat(flat, dim=-1)
        key, value = self.norm_k(self.key(many)), self.norm_v(self.value(many))
        places = places_in_blocks((height, width), block).to(x.device)
        y = self.attention(self.norm_q(self.query(low)), key, value, places)
        return self.mlp(y + low if self.residual else y).mT.unflatten(2, cells)

    def flops(self, m: int, n: int) -> int:
        """Of m coarse and n fine tokens."""
        ends = linear_flops(self.query, m) + self.mlp.flops(m)
        return ends + self.key.flops(n) + self.value.flops(n) + self.attention.flops(m, n, local=True)


@register
@dataclass(frozen=True)
class TokenPacker(Learned, Resampler):
    """Each token of a shrunk map attends to the s x s tokens that it stands for, taken from several blocks at once.

    Paper:   Li et al., IJCV 2025, https://arxiv.org/abs/2407.02392
    Code:    https://github.com/CircleRadon/TokenPacker, llava/model/multimodal_projector/builder.py
    Formula: q = LN(V shrunk(x)), shrunk bilinearly; k = LN(MLP(u)), v = LN(MLP(u)), u the states behind several blocks
             side by side; y = MLP(attention(q, k, v)) with q of a cell seeing its own s x s keys alone
    Shapes:  x, block_states (B, T H W, C) -> (B, T ceil(H / s) ceil(W / s), D), raster order
    Cost:    4 n (L C E + E^2) for L maps, 4 n E^2, 2 m (C E + 2 E^2 + E D + D^2) for m tokens out; 4 n E of inner
             products within cells are not counted.
    Differs: the code adds nothing to what a query reads; by default, where E is C, the coarse token itself is added, so
             that it starts as the host's projector on the shrunk map. s has to divide the grid there and has weights of
             its own; here the last cells may see fewer tokens, and one set of weights serves every s.

    Args:
        sides: values of s; 1 keeps the number of tokens.
        levels: other blocks than the last, as (0-based block, blocks that run in the paper's tower); () = none.
        width: E, 1024 in the code; None = see `networks.inner`.
        residual: add the coarse token to what it reads, where widths allow.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        MissingSignal: the host gave no `block_states`.
        ValueError: `sides` is empty or one is below 1, `width` is below 1, tokens are not a whole grid, or `count` is
            not that of a side.
    """

    name = "token_packer"
    stages = ("projector",)
    kinds = frozenset({"block_states"})
    positions = "renumber"
    requires_grid = True
    emits_grid = True
    hook = "instead"
    paper = "Li et al., IJCV 2025, https://arxiv.org/abs/2407.02392"
    fidelity = "reference"

    sides: tuple[int, ...] = (1, 2, 3, 4)
    levels: tuple[Level, ...] = LEVELS
    width: int | None = None
    residual: bool = True

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1 or (self.width is not None and self.width < 1):
            raise ValueError(f"token_packer: sides {self.sides} and width {self.width} must be 1 or more")

    def signals(self, depth: int) -> frozenset[Signal]:
        return level_signals(self.levels, depth)

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        width, maps = self.width or inner(widths.visual), len(self.levels) + 1
        return Network(widths.visual, width, widths.decoder, maps, self.residual, projector)

    def reachable(self, grid: Grid) -> Sequence[int]:
        return block_counts(squares(self.sides), grid)

    def make_tokens(self, tokens: Tokens, count: int) -> Resampled:
        check_whole(self.name, tokens)
        levels = level_states(self.levels, tokens)
        return raster(self.run(tokens.x, tokens.grid, block_of(squares(self.sides), tokens.n, count), *levels), tokens)

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(count, n)

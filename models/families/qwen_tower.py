"""What the towers of Qwen2.5-VL and Qwen3-VL share: patches in units of the merger, rotary positions, attention."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.compressors.base import Grid
from foveate.models.errors import HostError
from foveate.models.tower import Tower

REMEMBERED = 64
"""Grids whose rotations and windows a tower keeps at hand: pictures of one source mostly share a few."""


def in_units(rows: Tensor, side: int) -> Tensor:
    """A map (h, w, ...) of patches -> (h * w, ...), the side x side patches of a unit one behind the other."""
    h, w = rows.shape[:2]
    split = rows.reshape(h // side, side, w // side, side, *rows.shape[2:])
    return split.transpose(1, 2).reshape(h * w, *rows.shape[2:])


def patches_of(pixels: Tensor, patch: int, side: int, frames: int) -> Tensor:
    """Pixels -> (B, m, 3 * frames * patch * patch): units of side x side patches in reading order.

    Args:
        pixels: (B, 3, H, W) of still pictures, which stand in each of the tower's `frames` frames; or (B, frames, 3, H,
            W).
        patch: pixels along a patch's side.
        side: patches along a unit's side.
        frames: of a video that a patch spans.
    """
    if pixels.ndim == 5:
        split = pixels.unflatten(3, (-1, side, patch)).unflatten(-1, (-1, side, patch))  # (B, f, 3, h, s, p, w, s, p)
        return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(1, 4)
    split = pixels.unflatten(2, (-1, side, patch)).unflatten(-1, (-1, side, patch))  # (B, 3, h, s, p, w, s, p)
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (B, h, w, s, s, 3, p, p)
    still = ordered.unsqueeze(6).expand(*ordered.shape[:6], frames, patch, patch)
    return still.flatten(5).flatten(1, 4)


def turned_half(x: Tensor) -> Tensor:
    """The quarter turn of each pair (i, i + e / 2) of the last axis."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1)


@dataclass(frozen=True)
class Geometry:
    """What a grid means to the blocks.

    Attributes:
        cos, sin: (m, e) float32, of the patches' places.
        window: (m,) int64, the attention window that a patch lies in; None where the tower has none.
        members: of windows of one size, (number, patches of one) int64 patches; one entry for each size.
    """

    cos: Tensor
    sin: Tensor
    window: Tensor | None
    members: tuple[Tensor, ...]


class QwenTower(Tower):
    """A Qwen tower, opened: m patches in units of `merge`, in the order of the grid of units.

    Args:
        visual: the tower with its merger.

    Attributes:
        side: patches along a unit's side.
        frames: of a video that a patch spans; a still picture stands in all of them.
        gated: its MLP has three matrices.
        window: tokens along the side of an attention window; 0 = none.
        full: blocks that see the whole picture where others have windows.
        levels: blocks whose states ride along to the decoder's first layers, ascending.
    """

    has_cls = False
    gated: ClassVar[bool] = False
    window: int = 0
    full: frozenset[int] = frozenset()
    levels: tuple[int, ...] = ()

    def __init__(self, visual: nn.Module) -> None:
        c = visual.config
        self.visual, self.config, self.blocks = visual, c, visual.blocks
        self.depth, self.heads, self.patch = c.depth, c.num_heads, c.patch_size
        self.side, self.frames = c.spatial_merge_size, c.temporal_patch_size
        self.merge, self.scale = self.side**2, visual.blocks[0].attn.scaling
        self.norm_out = nn.Identity()  # states leave as they are, the merger brings its own norm
        self._known: dict[tuple[Grid, Any], Geometry] = {}

    def embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """See `Tower.embed`."""
        patches = patches_of(pixels, self.patch, self.side, self.frames)
        return self.visual.patch_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])

    def geometry(self, grid: Grid, device: torch.device) -> Geometry:
        """Rotations and windows of a grid of tokens."""
        key = (grid, device)
        found = self._known.get(key)
        if found is None:
            h, w = grid[1] * self.side, grid[2] * self.side
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            place = in_units(torch.stack([rows, columns], dim=-1), self.side).to(device)
            cos, sin = self.visual.rotary_pos_emb(place, place)
            found = Geometry(cos.float(), sin.float(), *self._windows(grid, device))
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = found  # threads may both write it: the same value
        return found

    def _windows(self, grid: Grid, device: torch.device) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """`Geometry.window` and `Geometry.members`."""
        return None, ()

    def attend(self, layer: int, x: Tensor, bias: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """See `Tower.attend`. Raises: HostError on a bias, which only reductions inside a tower would need."""
        if bias is not None:
            raise HostError("this tower's attention takes no sizes of tokens")
        part = self.blocks[layer].attn
        q, k, v = (self._split(p) for p in part.qkv(self.blocks[layer].norm1(x)).chunk(3, dim=-1))
        at = self.geometry(grid, x.device)
        q, k = self._rotated(q, at), self._rotated(k, at)
        if self.windows(layer, grid) is None:
            mixed = self._mixed(q, k, v)
        else:
            mixed = torch.empty_like(v)
            for index in at.members:
                mixed[:, :, index] = self._mixed(q[:, :, index], k[:, :, index], v[:, :, index])
        return x + part.proj(mixed.transpose(1, 2).flatten(2)), q, k

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Values mixed by attention within the last two axes but one."""
        if self.config._attn_implementation != "eager":
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        logits = q @ k.transpose(-1, -2) * self.scale
        return logits.softmax(-1, dtype=torch.float32).to(q.dtype) @ v

    def _split(self, projected: Tensor) -> Tensor:
        """(b, m, H * e) -> (b, H, m, e)."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _rotated(self, x: Tensor, at: Geometry) -> Tensor:
        """Queries or keys (b, H, rows, e) of the first patches, rotated in float32 as the tower does."""
        cos, sin = at.cos[: x.shape[2]], at.sin[: x.shape[2]]
        return (x.float() * cos + turned_half(x.float()) * sin).to(x.dtype)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """See `Tower.mlp`."""
        block = self.blocks[layer]
        return x + block.mlp(block.norm2(x))

    def queries_keys(self, layer: int, x: Tensor, rows: int, grid: Grid) -> tuple[Tensor | None, Tensor]:
        """See `Tower.queries_keys`."""
        block, at = self.blocks[layer], self.geometry(grid, x.device)
        weight, bias = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        normed = block.norm1(x)
        k = self._rotated(self._split(F.linear(normed, weight[1], bias[1])), at)
        q = self._rotated(self._split(F.linear(normed[:, :rows], weight[0], bias[0])), at) if rows else None
        return q, k

    def tokens(self, x: Tensor, grid: Grid) -> Tensor:
        """See `Tower.tokens`."""
        return x.unflatten(1, (-1, self.merge)).flatten(2)

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The merger: units (..., merge * C) -> (..., D), each on its own."""

"""Qwen2.5-VL: a tower with window attention, a 2 x 2 merger, a Qwen2 decoder with three position ids for each entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from foveate.compressors.base import Grid
from foveate.models.errors import UnsupportedModel
from foveate.models.families.qwen import QwenHost
from foveate.models.families.qwen_tower import QwenTower, in_units


class Qwen25Tower(QwenTower):
    """Most blocks attend within square windows; a few see the whole picture.

    Args:
        visual: `Qwen2_5_VisionTransformerPretrainedModel`.
    """

    gated = True

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual)
        self.full = frozenset(self.config.fullatt_block_indexes)
        self.window = self.config.window_size // self.side // self.patch

    def windows(self, layer: int, grid: Grid) -> Tensor | None:
        """See `Tower.windows`."""
        return None if layer in self.full else self.geometry(grid, self.visual.device).window

    def _windows(self, grid: Grid, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = torch.arange(grid[1] * self.side) // (self.window * self.side)
        columns = torch.arange(grid[2] * self.side) // (self.window * self.side)
        window = in_units(rows[:, None] * (int(columns[-1]) + 1) + columns, self.side)
        sizes = window.bincount()
        order = window.argsort(stable=True)
        split = order.split(sizes.tolist())
        members = [torch.stack([p for p in split if len(p) == size]) for size in sorted(set(sizes.tolist()))]
        return window.to(device), tuple(m.to(device) for m in members)

    def project(self, x: Tensor) -> Tensor:
        """See `QwenTower.project`."""
        merger = self.visual.merger
        return merger.mlp(merger.ln_q(x.unflatten(-1, (self.merge, -1))).flatten(-2))


class Qwen25VLHost(QwenHost):
    """An HF `Qwen2_5_VLForConditionalGeneration`; see `Host`."""

    model_class = Qwen2_5_VLForConditionalGeneration
    tower_class = Qwen25Tower

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        super().check(config, name)
        v = config.vision_config
        if v.window_size < v.patch_size * v.spatial_merge_size:
            raise UnsupportedModel(f"{name}: attention windows of {v.window_size} pixels hold no whole token")

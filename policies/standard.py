"""Standardisation of the observation vector for networks, and folding it into the form that is exported.

In training a feature that has not been revealed is exactly 0 after standardisation, so that a stop's unseen features
cannot drown its seen ones:

    z[j] = seen[group of j] * clip((x[j] - mean[j]) / scale[j], -clip, clip)

The exported form knows no `seen` factor: it standardises zeros too. Because an unseen feature is stored as 0 and `clip`
is wide enough for -mean / scale, both differ by a constant per group, which the first layer takes over through the
group's seen flag and its bias (`fold`): same sums, same decision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.controller import Layout, Normalisation
from foveate.controller.observation import GROUPS, HEAD
from foveate.rollouts.table import Table

LEAST_CLIP = 10.0
# Places of the head whose values are not of order one already: name -> (mean, scale). One decade of lambda is 0.5.
_HEAD_SCALES = {"log_lambda": (-0.25, 0.35), "spent": (0.0, 0.3), "budget_left": (1.0, 0.5)}


@dataclass(frozen=True)
class Standard:
    """Statistics of an observation, from the training inputs alone.

    Attributes:
        layout: names and places.
        mean, scale, low, high: (D,) float32; low and high are the training range.
        use: (D,) bool, entries that the network reads; others are 0 for it.
        clip: limit of a standardised value.
    """

    layout: Layout
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    use: np.ndarray
    clip: float

    @classmethod
    def fit(cls, table: Table, head: Collection[str] = HEAD, groups: Collection[str] = GROUPS) -> Standard:
        """Statistics of a table's features.

        Args:
            table: the training inputs.
            head: names of the head that the network may read.
            groups: feature groups that it may read.

        Raises:
            ValueError: an empty table, or features of other names than this code's.
        """
        if not table.n:
            raise ValueError("standard: the training table holds no input")
        layout = Layout.of_recorded(table.group_names)
        mean, scale = np.zeros(layout.size), np.ones(layout.size)
        low, high = (bound.astype(np.float64) for bound in layout.bounds())
        use = np.zeros(layout.size, bool)
        for i, name in enumerate(HEAD):
            mean[i], scale[i] = _HEAD_SCALES.get(name, (0.0, 1.0))
            use[i] = name in head
        for group in GROUPS:
            place, values = layout.slices[group], table.groups.get(group)
            if values is None or not values.shape[1]:
                continue
            use[place] = group in groups
            inside = slice(place.start + 1, place.stop)
            mean[inside], deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
            # a feature that hardly varies in training must not explode where it does vary
            scale[inside] = np.maximum(deviation, np.maximum(0.05 * np.abs(mean[inside]), 1e-3))
            room = 0.1 * (values.max(axis=0) - values.min(axis=0))
            low[inside], high[inside] = values.min(axis=0) - room, values.max(axis=0) + room
        clip = max(LEAST_CLIP, float(np.abs(mean / scale).max()) * 1.01)
        low[~np.isfinite(low)], high[~np.isfinite(high)] = 0.0, 0.0  # a group that this host does not reveal
        kinds = (a.astype(np.float32) for a in (mean, scale, low, high))
        return cls(layout, *kinds, use, clip)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) observations -> (B, D) standardised; unseen and unread entries are 0."""
        mean, scale, groups, use = self._tensors(x.device)
        seen = torch.cat([torch.ones_like(x[:, :1]), x[:, [self.layout.slices[g].start for g in GROUPS]]], dim=1)
        return ((x - mean) / scale).clamp(-self.clip, self.clip) * seen[:, groups] * use

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mean, scale, the place of each entry's seen flag among (always, groups ...), and `use` as floats."""
        cached = self.__dict__.get("_cache")
        if cached is None or cached[0].device != device:
            groups = np.zeros(self.layout.size, np.int64)
            for i, group in enumerate(GROUPS):
                place = self.layout.slices[group]
                groups[place.start + 1 : place.stop] = i + 1
            parts = (self.mean, self.scale, groups, self.use.astype(np.float32))
            cached = tuple(torch.from_numpy(part).to(device) for part in parts)
            object.__setattr__(self, "_cache", cached)
        return cached

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A first layer on `Standard`'s output, (H, D) and (H,), as one on `normalisation`'s output."""
        weight, bias = weight.astype(np.float64) * self.use, bias.astype(np.float64)
        for group in GROUPS:
            place = self.layout.slices[group]
            inside = slice(place.start + 1, place.stop)
            # unseen, the exported form feeds -mean / scale: the bias adds it back, the flag takes it away again
            constant = weight[:, inside] @ (self.mean[inside].astype(np.float64) / self.scale[inside])
            bias = bias + constant
            weight[:, place.start] -= constant
        return weight.astype(np.float32), bias.astype(np.float32)

    @property
    def normalisation(self) -> Normalisation:
        """The exported statistics."""
        return Normalisation(self.mean, self.scale, self.low, self.high, self.clip)

"""The contract of vision towers: block by block, with room for a reduction between attention and MLP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.compressors.base import Grid, Reducer, Reduction, apply
from foveate.models.inputs import extent
from foveate.models.visual import History, Riders, carried, check_grid, decide, groups, leaving


@dataclass(frozen=True)
class BlockInput:
    """What a pass keeps of a block: its input x (b, c + m, C), CLS first; log sizes (b, c + m) where it saw them."""

    x: Tensor
    bias: Tensor | None

    def at(self, views: Tensor) -> BlockInput:
        """Some views."""
        return BlockInput(self.x[views], None if self.bias is None else self.bias[views])


@dataclass
class EncoderGroup:
    """Views with equal counts on their way through the tower.

    Attributes:
        views: their numbers in the pass.
        x: (b, c + m, C), after block 0's attention at first, after a whole block later; m = n tokens * patches of one.
        riders: of the n tokens.
        q, k: (b, H, c + m, e) of the block whose attention has just run.
        inputs: what each block got, for signals asked for later.
        history: the reductions so far.
        counts: tokens (without CLS) entering and leaving each block.
    """

    views: list[int]
    x: Tensor
    riders: Riders
    q: Tensor
    k: Tensor
    inputs: list[BlockInput]
    proportional: bool = False
    history: History = field(default_factory=History)
    counts: list[tuple[int, int]] = field(default_factory=list)

    def at(self, index: Tensor, x: Tensor, riders: Riders) -> EncoderGroup:
        """Some of the views, with these tokens."""
        views, counts = [self.views[i] for i in index.tolist()], list(self.counts)
        if torch.equal(index, torch.arange(len(self.views), device=index.device)):  # all of them: nothing to copy
            history = History(list(self.history.steps))
            return EncoderGroup(views, x, riders, self.q, self.k, list(self.inputs), self.proportional, history, counts)
        inputs, history = [kept.at(index) for kept in self.inputs], self.history.at(index)
        return EncoderGroup(views, x, riders, self.q[index], self.k[index], inputs, self.proportional, history, counts)


Signals = Callable[[EncoderGroup, int], dict[str, Tensor]]


class Tower(ABC):
    """A vision tower, opened. C is its width, m a view's patches, n its tokens, c = 1 where it has a CLS.

    A family's tower says how its parts run (`embed`, `attend`, `mlp`, `queries_keys`), and what leaves it (`tokens`).
    Where the connector merges patches, a token is a whole unit of `merge` patches: `tokens` gives their states side by
    side in the connector's order, and `folded` makes one value of a unit's signals. Order of the m patches inside the
    tower is the family's own business; order of the n tokens is that of the view's grid.

    Attributes:
        depth: blocks that run.
        heads: of one block's attention.
        patch: pixels along a patch's side.
        merge: patches of one token.
        has_cls: a CLS row rides along, first.
        scale: factor of attention logits.
        norm_out: the tower's last norm, before states are compared with text.
    """

    depth: int
    heads: int
    patch: int
    merge: int = 1
    has_cls: bool = False
    scale: float
    norm_out: nn.Module

    @property
    def first(self) -> int:
        """Rows of the sequence before the first patch."""
        return int(self.has_cls)

    @property
    def hands_cls(self) -> bool:
        """What follows the tower may have its CLS: one that stands beside patches, not beside units."""
        return self.has_cls and self.merge == 1

    @abstractmethod
    def embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Views of equal grid, (B, 3, H, W) normalised -> (B, c + m, C), the input of block 0."""

    @abstractmethod
    def attend(self, layer: int, x: Tensor, bias: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """The attention half of a block.

        Args:
            layer: 0-based block.
            x: (b, c + m, C) its input.
            bias: (b, c + m) float32 added to every query's logits, or None.
            grid: of the views' tokens when nothing is compressed.
        Returns:
            x plus attention (b, c + m, C), and queries and keys (b, H, c + m, e), rotated where the tower rotates.
        """

    @abstractmethod
    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """The other half of a block."""

    @abstractmethod
    def queries_keys(self, layer: int, x: Tensor, rows: int, grid: Grid) -> tuple[Tensor | None, Tensor]:
        """The first `rows` queries (None for 0) and all keys (b, H, ., e) of a block, from its input."""

    def windows(self, layer: int, grid: Grid) -> Tensor | None:
        """(c + m,) the attention window that each row of a block lies in; None where all see all."""
        return None

    def tokens(self, x: Tensor, grid: Grid) -> Tensor:
        """(b, m, C) behind the last block -> (b, n, merge * C) what leaves the tower; a look at block 0 uses it too."""
        return x

    def behind(self, group: EncoderGroup, layer: int) -> Tensor:
        """(b, c + m, C) a block's output, of a group behind the last one."""
        return group.x if layer == self.depth - 1 else group.inputs[layer + 1].x

    def extra(self, group: EncoderGroup) -> Tensor | None:
        """(b, n, L, merge * C): units of the L levels that ride along to the decoder's first layers; None without."""
        return None

    def folded(self, kind: str, value: Tensor, grid: Grid) -> Tensor:
        """A signal of patches (b, ..., m), keys (b, m, e), as one of tokens: attention is summed, keys are averaged.

        The default expects the `merge` patches of a unit side by side and units in the order of the grid.
        """
        if self.merge == 1:
            return value
        if kind == "keys":
            return value.unflatten(1, (-1, self.merge)).mean(dim=2)
        return value.unflatten(-1, (-1, self.merge)).sum(dim=-1)

    def start(self, views: Sequence[int], x: Tensor, riders: Riders) -> EncoderGroup:
        """Block 0's attention on embedded pixels x (b, c + m, C)."""
        y, q, k = self.attend(0, x, None, riders.grid)
        return EncoderGroup(list(views), y, riders, q, k, [BlockInput(x, None)])

    def run(
        self, group: EncoderGroup, compressor: Reducer | None, sites: Sequence[tuple[int, int]], signals: Signals
    ) -> list[EncoderGroup]:
        """All blocks, from a group after block 0's attention; several groups come back where counts part.

        Args:
            group: from `start`.
            compressor: acts after attention and before the MLP of each site's block, or None; only where `merge` is 1.
            sites: (block, count there), ascending.
            signals: gives the compressor's signals for a group standing in a block.
        """
        group.proportional = compressor is not None and compressor.proportional
        states, at = [group], {layer: (number, count) for number, (layer, count) in enumerate(sites)}
        for layer in range(self.depth):
            after = []
            for state in states:
                if layer:
                    state = self._attended(layer, state)
                parts = [state]
                if layer in at and at[layer][1] < state.riders.n:
                    parts = self.reduce(state, compressor, layer, *at[layer], signals(state, layer))
                for part in parts:
                    part.counts.append((state.riders.n, part.riders.n))
                    part.x = self.mlp(layer, part.x)
                after += parts
            states = after
        return [self._left(state) for state in states]

    def shown(self, group: EncoderGroup, masks: Sequence[np.ndarray | None]) -> list[EncoderGroup]:
        """A group behind the last block without the tokens that no prompt entry shows; parts where those differ.

        What an untouched view shows is a smaller grid of its own.

        Args:
            group: from `run`.
            masks: of each of its views: (tokens of the untouched view,) bool, shown or not; None = all are.
        """
        kept = [
            None if mask is None or mask[origin].all() else tuple(np.flatnonzero(mask[origin]).tolist())
            for mask, origin in zip(masks, group.riders.origin.cpu().numpy(), strict=True)
        ]
        if not any(part is not None for part in kept):
            return [group]
        parts, x = [], group.x
        for part, members in groups(kept):
            index = torch.tensor(members, device=x.device)
            riders = group.riders.at(index)
            if part is None:
                parts.append(group.at(index, x[index], riders))
                continue
            anchor = torch.tensor(part, dtype=torch.long, device=x.device).expand(len(members), -1)
            grid = extent(masks[members[0]].reshape(riders.grid)) if riders.whole else None
            order = Reduction(anchor, grid_out=grid)
            left = torch.cat([x[index, : self.first], apply(order, x[index, self.first :])], dim=1)
            parts.append(group.at(index, left, carried(riders, order, "keep")))
            parts[-1].history.steps.append((self.depth - 1, order))
        return parts

    def _left(self, state: EncoderGroup) -> EncoderGroup:
        """The group behind the last block, its tokens in order again where something has moved them."""
        if state.history.steps:
            state.riders, order = leaving(state.riders)
            state.x = torch.cat([state.x[:, : self.first], apply(order, state.x[:, self.first :])], dim=1)
            state.history.steps.append((self.depth - 1, order))
        return state

    def _attended(self, layer: int, state: EncoderGroup) -> EncoderGroup:
        bias = None
        if state.proportional and state.history.steps:
            bias = F.pad(state.riders.size.log(), (self.first, 0))  # CLS has size 1
        state.inputs.append(BlockInput(state.x, bias))
        state.x, state.q, state.k = self.attend(layer, state.x, bias, state.riders.grid)
        return state

    def reduce(
        self, state: EncoderGroup, compressor: Reducer, layer: int, site: int, count: int, signals: dict[str, Tensor]
    ) -> list[EncoderGroup]:
        """The group after one reduction inside a block; CLS goes out before and comes back after."""
        check_grid(compressor, state.riders.whole, state.riders.grid, state.riders.n)
        cls, x = state.x[:, : self.first], state.x[:, self.first :]
        parts = []
        for index, reduction in decide(compressor, state.riders.tokens(x, signals, site), count):
            kept = torch.cat([cls[index], apply(reduction, x[index])], dim=1)
            part = state.at(index, kept, carried(state.riders.at(index), reduction, compressor.positions))
            part.history.steps.append((layer, reduction))
            parts.append(part)
        return parts

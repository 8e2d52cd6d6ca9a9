"""The vision tower, block by block, with room for a reduction between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.compressors.base import Grid, Reducer, apply
from foveate.models.errors import UnsupportedModel
from foveate.models.visual import History, Riders, carried, check_grid, decide, leaving


@dataclass(frozen=True)
class BlockInput:
    """What a pass keeps of a block: its input x (b, c + n, D), CLS first; log sizes (b, c + n) where it saw them."""

    x: Tensor
    bias: Tensor | None

    def at(self, rows: Tensor) -> BlockInput:
        """Some rows."""
        return BlockInput(self.x[rows], None if self.bias is None else self.bias[rows])


@dataclass
class EncoderGroup:
    """Rows with equal counts on their way through the tower.

    Attributes:
        rows: their numbers in the pass.
        x: (b, c + n, D), after block 0's attention at first, after a whole block later.
        riders: of the n patch tokens.
        q, k: (b, H, c + n, e) of the block whose attention has just run.
        inputs: what each block got, for signals asked for later.
        history: the reductions so far.
        counts: tokens (without CLS) entering and leaving each block.
    """

    rows: list[int]
    x: Tensor
    riders: Riders
    q: Tensor
    k: Tensor
    inputs: list[BlockInput]
    proportional: bool = False
    history: History = field(default_factory=History)
    counts: list[tuple[int, int]] = field(default_factory=list)

    def at(self, index: Tensor, x: Tensor, riders: Riders) -> EncoderGroup:
        """Some of the rows, with these tokens."""
        rows, counts = [self.rows[i] for i in index.tolist()], list(self.counts)
        if torch.equal(index, torch.arange(len(self.rows), device=index.device)):  # all of them: nothing to copy
            history = History(list(self.history.steps))
            return EncoderGroup(rows, x, riders, self.q, self.k, list(self.inputs), self.proportional, history, counts)
        inputs, history = [kept.at(index) for kept in self.inputs], self.history.at(index)
        return EncoderGroup(rows, x, riders, self.q[index], self.k[index], inputs, self.proportional, history, counts)


Signals = Callable[[EncoderGroup, int], dict[str, Tensor]]


class VisionTower:
    """A CLIP or SigLIP tower, opened.

    Args:
        tower: `CLIPVisionModel` or `SiglipVisionModel`.
        feature_layer: index into the hidden states that feed the projector; blocks behind it are never run.
    Raises:
        UnsupportedModel: the feature layer is not one block's output.
    """

    def __init__(self, tower: nn.Module, feature_layer: int) -> None:
        config = tower.config
        self.depth = feature_layer % (config.num_hidden_layers + 1)
        blocks = config.num_hidden_layers
        if self.depth < 1 or not -blocks <= feature_layer <= blocks:
            raise UnsupportedModel(f"vision_feature_layer {feature_layer}: no block's output in a tower of {blocks}")
        self.config, self.embeddings = config, tower.embeddings
        self.norm_in = getattr(tower, "pre_layrnorm", None) or nn.Identity()
        self.norm_out = tower.post_layernorm
        self.layers = tower.encoder.layers[: self.depth]
        self.has_cls = hasattr(tower.embeddings, "class_embedding")
        self.patch, self.heads = config.patch_size, config.num_attention_heads
        side = config.image_size // config.patch_size
        self.grid: Grid = (1, side, side)

    @property
    def first(self) -> int:
        """Rows of the sequence before the first patch."""
        return int(self.has_cls)

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, c + n, D); position embeddings are interpolated where the size is not the tower's own."""
        weight = self.embeddings.patch_embedding.weight
        return self.norm_in(self.embeddings(pixels.to(weight.device), interpolate_pos_encoding=True))

    def attend(self, layer: int, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The attention half of a block.

        Args:
            layer: 0-based block.
            x: (b, m, D) its input.
            bias: (b, m) float32 added to every query's logits, or None.
        Returns:
            x plus attention (b, m, D), and queries and keys (b, H, m, e).
        """
        block = self.layers[layer]
        part = block.self_attn
        normed = block.layer_norm1(x)
        q, k, v = (self.split(p(normed)) for p in (part.q_proj, part.k_proj, part.v_proj))
        mask = None if bias is None else bias.to(x.dtype)[:, None, None, :]
        if self.config._attn_implementation == "eager":
            logits = q @ k.transpose(-1, -2) * part.scale
            mixed = (logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32).to(x.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=part.scale)
        return x + part.out_proj(mixed.transpose(1, 2).flatten(2)), q, k

    def split(self, projected: Tensor) -> Tensor:
        """(b, m, H * e) -> (b, H, m, e)."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """The other half of a block."""
        block = self.layers[layer]
        return x + block.mlp(block.layer_norm2(x))

    def start(self, rows: Sequence[int], x: Tensor, seed: Tensor, grid: Grid) -> EncoderGroup:
        """Block 0's attention on embedded pixels x (b, c + n, D)."""
        b, n = x.shape[0], x.shape[1] - self.first
        index = torch.arange(n, device=x.device).expand(b, n)
        ones = torch.ones(b, n, device=x.device)
        riders = Riders(ones, index, index, index, seed, torch.full((b,), n, device=x.device), grid)
        y, q, k = self.attend(0, x, None)
        return EncoderGroup(list(rows), y, riders, q, k, [BlockInput(x, None)])

    def run(
        self, group: EncoderGroup, compressor: Reducer | None, sites: Sequence[tuple[int, int]], signals: Signals
    ) -> list[EncoderGroup]:
        """All blocks, from a group after block 0's attention; several groups come back where counts part.

        Args:
            group: from `start`.
            compressor: acts after attention and before the MLP of each site's block, or None.
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
        return [self._left(state, compressor) for state in states]

    def _left(self, state: EncoderGroup, compressor: Reducer | None) -> EncoderGroup:
        """The group behind the last block, its tokens in order again where something has moved them."""
        if state.history.steps:
            state.riders, order = leaving(state.riders, compressor.positions)
            state.x = torch.cat([state.x[:, : self.first], apply(order, state.x[:, self.first :])], dim=1)
            state.history.steps.append((self.depth - 1, order))
        return state

    def _attended(self, layer: int, state: EncoderGroup) -> EncoderGroup:
        bias = None
        if state.proportional and state.history.steps:
            bias = F.pad(state.riders.size.log(), (self.first, 0))  # CLS has size 1
        state.inputs.append(BlockInput(state.x, bias))
        state.x, state.q, state.k = self.attend(layer, state.x, bias)
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

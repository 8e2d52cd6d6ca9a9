"""Analytic cost model: FLOPs of matrix products and KV bytes, from shapes and token counts alone.

A cost is known before anything runs.

One multiply-add is 2 FLOPs. Norms, softmax, rotary embedding, activations and residuals are not counted: a host keeps
them on a line of their own. Attention is the full square, as fused kernels without causal skipping execute it and as
papers count it; `causal=True` counts the lower triangle. The papers' own conventions, for comparison with printed
figures only, are in `paper_flops`.

Letters: n tokens, d width, m MLP width, h query heads, k key-value heads, e head size, L layers, K the layer before
which tokens go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral


@dataclass(frozen=True)
class ViTShape:
    """A vision tower.

    Args:
        dim: width d.
        mlp: MLP width m.
        layers: blocks that are executed for the decoder (a tower of 24 read before its last block has 23).
        heads: attention heads.
        patch: pixels along a patch's side.
        channels: colour channels.
        cls: whether a CLS row rides along in every block.
        gated: whether the MLP has three matrices instead of two.
        merge: patches of one token behind the tower.
        window: tokens along the side of an attention window; 0 = every block sees all.
        full_blocks: blocks that see all where others have windows.
    Raises:
        ValueError: a size below 1, or a window below 0.
    """

    dim: int
    mlp: int
    layers: int
    heads: int
    patch: int
    channels: int = 3
    cls: bool = True
    gated: bool = False
    merge: int = 1
    window: int = 0
    full_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_sizes(self, except_for=("cls", "gated", "window", "full_blocks"))
        if self.window < 0:
            raise ValueError(f"ViTShape: window = {self.window} is below 0")

    @property
    def hands_cls(self) -> bool:
        """What follows the tower may have its CLS: one that stands beside patches, not beside units of them."""
        return self.cls and self.merge == 1

    def rows(self, tokens: int) -> int:
        """Rows of a block's sequence for so many tokens."""
        return tokens * self.merge + int(self.cls)

    def pairs(self, block: int, tokens: int, grid: tuple[int, int, int]) -> int:
        """Pairs of a query and a key in a block: all, or those within one window; windows are cut off at the border.

        Args:
            block: 0-based.
            tokens: that are left of the view.
            grid: of the view's tokens, of which windows need every one.
        """
        if not self.window or block in self.full_blocks:
            return self.rows(tokens) ** 2
        frames, *sides = grid
        squares = [side // self.window * self.window**2 + (side % self.window) ** 2 for side in sides]
        return frames * squares[0] * squares[1] * self.merge**2

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.dim

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.dim


@dataclass(frozen=True)
class DecoderShape:
    """A language model with grouped-query attention and a three-matrix gated MLP.

    Args:
        dim: width d.
        mlp: MLP width m.
        layers: decoder layers L.
        heads: query heads h.
        kv_heads: key-value heads k; a divisor of `heads`.
        head_dim: head size e.
        vocab: rows of the output matrix.
    Raises:
        ValueError: a size below 1, or heads that the key-value heads do not divide.
    """

    dim: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"DecoderShape: heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}")

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class HostShape:
    """A multimodal model.

    Args:
        vit: its vision tower.
        projector: widths of the MLP between them, from the tower's to the decoder's, such as (96, 192, 192).
        decoder: its language model.
        bytes_per_value: bytes of one KV value, such as 2 for 16-bit floats.
        deepstack: levels of the tower that go through projectors of their own and are added in the decoder's first
            layers.
    """

    vit: ViTShape
    projector: tuple[int, ...]
    decoder: DecoderShape
    bytes_per_value: int
    deepstack: int = 0


def _check_sizes(shape: ViTShape | DecoderShape, except_for: tuple[str, ...] = ()) -> None:
    for each in fields(shape):
        value = getattr(shape, each.name)
        if each.name not in except_for and value < 1:
            raise ValueError(f"{type(shape).__name__}: {each.name} = {value} is below 1")


def _check_counts(**counts: float) -> None:
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} = {value} is below 0")


def patch_embed(shape: ViTShape, n_patches: int) -> int:
    """FLOPs of the patch embedding: 2 n (c p^2) d."""
    _check_counts(n_patches=n_patches)
    return 2 * n_patches * shape.channels * shape.patch**2 * shape.dim


def vit_block(shape: ViTShape, n: int, window: int | None = None) -> int:
    """FLOPs of one vision block: 8 n d^2 + 4 n^2 d + 4 n d m, with 6 n d m where the MLP is gated.

    Args:
        shape: the tower's.
        n: tokens in the block, CLS and registers included.
        window: rows in an attention window, where attention is windowed: 4 n w d instead of 4 n^2 d.
    """
    _check_counts(n=n)
    reach = n if window is None else min(window, n)
    mlp = (6 if shape.gated else 4) * n * shape.dim * shape.mlp
    return 8 * n * shape.dim**2 + 4 * n * reach * shape.dim + mlp


def projector(shape: HostShape | Sequence[int], n: int) -> int:
    """FLOPs of an MLP projector on n tokens: the sum of 2 n a b over neighbouring widths a, b.

    Args:
        shape: a host, or widths such as (1024, 4096, 4096). A 2 x 2 merger is (4 d, 4 d, out) on a quarter of the
            patches.
        n: rows that go through it.
    """
    _check_counts(n=n)
    widths = shape.projector if isinstance(shape, HostShape) else shape
    return sum(2 * n * a * b for a, b in zip(widths, widths[1:], strict=False))


def decoder_block(shape: DecoderShape, n: int, cached: int = 0, causal: bool = False) -> int:
    """FLOPs of one decoder layer that takes in n tokens: 2 n d he + 4 n d ke + 2 n he d + attention + 6 n d m.

    Args:
        shape: the decoder's.
        n: new tokens.
        cached: entries p that the layer's cache holds before.
        causal: attention is 4 n p he + 2 n (n + 1) he, as kernels that skip the upper triangle do, instead of 4 n (p +
            n) he.
    """
    _check_counts(n=n, cached=cached)
    he, ke, d = shape.query_width, shape.key_width, shape.dim
    attention = 4 * n * cached * he + (2 * n * (n + 1) if causal else 4 * n * n) * he
    return 4 * n * d * he + 4 * n * d * ke + attention + 6 * n * d * shape.mlp


def decode_block(shape: DecoderShape, cached: int | Sequence[int]) -> int:
    """FLOPs of one decoder layer in one decoding step.

    Args:
        shape: the decoder's.
        cached: entries in the layer's cache before the step, or one number for each key-value head where heads differ.
    Raises:
        ValueError: a number below 0, or not one for each head.
    """
    if isinstance(cached, Integral):
        return decoder_block(shape, 1, cached)
    if len(cached) != shape.kv_heads:
        raise ValueError(f"cached has {len(cached)} numbers for {shape.kv_heads} key-value heads")
    _check_counts(**{f"cached[{head}]": entries for head, entries in enumerate(cached)})
    group = shape.heads // shape.kv_heads * shape.head_dim
    return decoder_block(shape, 1) + 4 * group * sum(cached)


def lm_head(shape: DecoderShape, positions: int) -> int:
    """FLOPs of the output matrix: 2 d V for each position that is scored."""
    _check_counts(positions=positions)
    return 2 * positions * shape.dim * shape.vocab


def query_rows(shape: DecoderShape | ViTShape, n: int, rows: int = 1) -> int:
    """FLOPs of recomputing some rows of one layer's attention.

    2 r d he for queries, 2 n d ke for keys, 2 r n he for their products: what a method that reads the last prompt
    token's row, or the CLS row, costs beside a fused kernel.

    Args:
        shape: the layer's.
        n: tokens with a key.
        rows: query rows r.
    """
    _check_counts(n=n, rows=rows)
    he, ke, d = shape.query_width, shape.key_width, shape.dim
    return 2 * rows * d * he + 2 * n * d * ke + 2 * rows * n * he


def kv_bytes(shape: DecoderShape, entries_per_layer: Sequence[int | Sequence[int]], bytes_per_value: int) -> int:
    """Bytes of a KV cache: 2 * bytes * e * entries, summed over layers and key-value heads.

    Args:
        shape: the decoder's.
        entries_per_layer: for each layer the entries of every head, or a sequence with one number for each head.
        bytes_per_value: 2 for 16-bit floats.
    """
    heads = [[each] * shape.kv_heads if isinstance(each, Integral) else each for each in entries_per_layer]
    return 2 * bytes_per_value * shape.head_dim * sum(sum(layer) for layer in heads)


def paper_flops(style: str, shape: DecoderShape, visual_per_layer: Sequence[float], n_text: int = 0) -> float:
    """The decoder's prefill cost as papers print it: never to be mixed with the exact figures of this module.

    All count a multiply-add as 1, ignore grouped-query attention, and leave out tower, projector, output matrix and the
    method's own work.

    * "fastv", "visionzip": 4 n d^2 + 2 n^2 d + 2 n d m in each layer, with n = image and text, and two MLP matrices
      although LLaMA has three.
    * "pyramiddrop": 4 n d^2 + 2 n^2 d + 3 n d m in each layer, with n = image tokens only (`n_text` is left out).

    Args:
        style: whose convention.
        shape: the decoder's.
        visual_per_layer: visual tokens in each of the L layers.
        n_text: text tokens, the same in each layer.
    Raises:
        ValueError: unknown style, or not one count for each layer.
    """
    if style not in ("fastv", "visionzip", "pyramiddrop"):
        raise ValueError(f"unknown style {style!r}; known: fastv, visionzip, pyramiddrop")
    if len(visual_per_layer) != shape.layers:
        raise ValueError(f"visual_per_layer has {len(visual_per_layer)} counts for {shape.layers} layers")
    _check_counts(n_text=n_text, visual_tokens=min(visual_per_layer))
    text, matrices = (0, 3) if style == "pyramiddrop" else (n_text, 2)
    d, m = shape.dim, shape.mlp
    counts = [visual + text for visual in visual_per_layer]
    return sum(4 * n * d * d + 2 * n * n * d + matrices * n * d * m for n in counts)


def rho_bar(visual_per_layer: Sequence[float], n: int) -> float:
    """Layer-averaged retention: the mean over layers of visual tokens, over the n that entered ("average tokens" / n).

    Raises:
        ValueError: n below 1, or no layer.
    """
    if n < 1 or not visual_per_layer:
        raise ValueError(
            f"rho_bar needs n >= 1 tokens and at least one layer; got n = {n}, {len(visual_per_layer)} layers"
        )
    return sum(visual_per_layer) / (len(visual_per_layer) * n)


def one_shot_rho_bar(keep: float, layer: int, depth: int, entry: float = 1.0) -> float:
    """Layer-averaged retention of one cut: entry * (K + (L - K) keep) / L.

    Args:
        keep: share that stays at the cut, in (0, 1].
        layer: K, the layer before which the cut happens, 0..depth - 1.
        depth: L.
        entry: share that an earlier stage had left, in (0, 1].
    Raises:
        ValueError: an argument is outside its range.
    """
    _check_cut(layer, depth, keep=keep, entry=entry)
    return entry * (layer + (depth - layer) * keep) / depth


def one_shot_keep(mean: float, layer: int, depth: int, n: int) -> float:
    """The share to keep at one cut for a layer-averaged retention of `mean`: (L mean - K) / (L - K), at least 1 / n.

    A mean of K / L or less can not be reached, since the K layers before the cut see every token: one token is then the
    nearest.

    Raises:
        ValueError: `mean` is outside (0, 1], `layer` is outside 0..depth - 1, or n is below 1.
    """
    _check_cut(layer, depth, mean=mean)
    if n < 1:
        raise ValueError(f"n = {n} tokens is below 1")
    return max(1 / n, (depth * mean - layer) / (depth - layer))


def staged_rho_bar(factor: float, stages: int) -> float:
    """Layer-averaged retention of S equally long stages, each keeping f of the one before: (1 + f + ... + f^(S-1)) / S.

    Raises:
        ValueError: `factor` is outside (0, 1] or there is no stage.
    """
    if not 0 < factor <= 1 or stages < 1:
        raise ValueError(f"factor = {factor} is outside (0, 1] or stages = {stages} is below 1")
    return sum(factor**stage for stage in range(stages)) / stages


def _check_cut(layer: int, depth: int, **shares: float) -> None:
    if not 0 <= layer < depth:
        raise ValueError(f"layer = {layer} is outside 0..{depth - 1}")
    for name, value in shares.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} = {value} is outside (0, 1]")

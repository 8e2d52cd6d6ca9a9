"""Random tokens with every signal in its shape: what a method is tried on, in tests and in timings."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.compressors.base import ANY_DEPTH, Compressor
from foveate.compressors.signals import LEVELS
from foveate.compressors.tokens import Grid, Tokens


def random_tokens(
    n: int = 12,
    batch: int = 1,
    dim: int = 8,
    grid: Grid | None = None,
    dtype: torch.dtype = torch.float32,
    cls: bool = False,
    seed: int = 0,
    x: Tensor | None = None,
    size: Tensor | None = None,
    heads: int = 2,
    key_dim: int = 6,
    **signals: Tensor,
) -> Tokens:
    """Tokens with a random value of every kind of signal, softmax rows where a signal is attention.

    Args:
        n: tokens of a row.
        batch: rows.
        dim: features of a token, and of the question.
        grid: of the tokens; None = (1, 3, 4).
        dtype: of features and signals.
        cls: row 0 is CLS, so there are n - 1 patches.
        seed: of all that is random.
        x: (batch, n, dim) in place of random features.
        size: (batch, n) in place of ones.
        heads: of attention rows.
        key_dim: width of keys, of `features` and of frames' vectors.
        signals: in place of random ones.
    """
    generator, decoder = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 3)

    def softmax(*shape: int, source: torch.Generator = generator) -> Tensor:
        return torch.rand(shape, generator=source).softmax(-1)

    every = {
        "cls_attention": softmax(batch, heads, n),
        "received_attention": softmax(batch, n),
        "attention_map": softmax(batch, n, n),
        "keys": torch.randn(batch, n, key_dim, generator=generator),
        "visual_keys": torch.randn(batch, n, key_dim, generator=generator),
        "block_states": torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed + 2)),
        "cls_states": torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed + 7)),
        "features": torch.randn(batch, n, key_dim, generator=torch.Generator().manual_seed(seed + 1)),
        "text_similarity": torch.rand(batch, n, generator=generator) * 2 - 1,
        "question": normalize(torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed + 6)), dim=-1),
        "phrase_similarity": torch.rand(batch, 3, n, generator=generator) * 2 - 1,
        "last_query": softmax(batch, heads, n),
        "unrotated_query": softmax(batch, heads, n, source=decoder),
        "mean_query": softmax(batch, heads, n, source=decoder),
        "wide_keys": torch.randn(batch, n, key_dim, generator=decoder),
        "hidden_states": torch.randn(batch, n, dim, generator=decoder),
        "post_norm": torch.randn(batch, n, dim, generator=decoder),
        "glimpse_query": softmax(batch, 1, n, source=torch.Generator().manual_seed(seed + 8)).log(),  # of one head
        "spoken": torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed + 10)),
        "tower_levels": torch.randn(batch, LEVELS, n, dim, generator=torch.Generator().manual_seed(seed + 9)),
        "text_attention": torch.rand(batch, 2, n, generator=torch.Generator().manual_seed(seed + 4)),
        "text_peak": torch.rand(batch, n, generator=torch.Generator().manual_seed(seed + 10)),
        "cls_rank": torch.rand(batch, n, generator=torch.Generator().manual_seed(seed + 5)),
        "frame_vectors": torch.randn(batch, n, key_dim, generator=decoder),
        "frame_similarity": torch.rand(batch, n, generator=decoder) * 2 - 1,
    }
    features = torch.randn(batch, n, dim, generator=generator) if x is None else x
    return Tokens(
        x=features.to(dtype),
        size=torch.ones(batch, n) if size is None else size,
        position=(torch.arange(n) - int(cls)).expand(batch, n).contiguous(),
        grid=(1, 3, 4) if grid is None else grid,
        seed=torch.randint(-(2**62), 2**62, (batch,), generator=generator),
        signals={kind: value.to(dtype) for kind, value in (every | signals).items()},
    )


def for_method(tokens: Tokens, method: Compressor) -> Tokens:
    """The same with each signal that a method asks for also under the name it asks by, its tag included."""
    asked = {signal.key: tokens.signals[signal.kind] for signal in method.signals(ANY_DEPTH)}
    return replace(tokens, signals={**tokens.signals, **asked})

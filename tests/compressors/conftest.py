"""Small inputs for every compressor: tokens with every signal, a cache of one layer, and a counter of matrix FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.compressors.base import KVCache
from foveate.compressors.trial import random_tokens


def build_cache(
    visual=12, text=(2, 3), batch=1, heads=2, dim=4, dtype=torch.float32, seed=0, keys=None, frame=None, **signals
):
    """A cache of one layer: text[0] entries, the visual ones, text[1] entries. Named signals replace random ones.

    `frame` lists the frames of the visual entries.
    """
    generator = torch.Generator().manual_seed(seed)
    entries = text[0] + visual + text[1]
    every = {"accumulated_attention": torch.rand(batch, heads, entries, generator=generator) * 3}
    other = torch.Generator().manual_seed(seed + 1)
    every["recent_attention"] = torch.rand(batch, heads, entries, generator=other)
    every["survivors"] = (torch.rand(batch, entries, generator=other) > 0.4).float()
    every["frame_relevance"] = torch.rand(batch, entries, generator=other)
    every["answer_attention"] = torch.rand(batch, entries, generator=other)
    random_keys = torch.randn(batch, heads, entries, dim, generator=generator)
    where = torch.arange(entries)
    return KVCache(
        keys=(random_keys if keys is None else keys).to(dtype),
        values=torch.randn(batch, heads, entries, dim, generator=generator).to(dtype),
        visual=(where >= text[0]) & (where < text[0] + visual),
        seed=torch.randint(-(2**62), 2**62, (batch,), generator=generator),
        signals={kind: value.to(dtype) for kind, value in (every | signals).items()},
        frame=None if frame is None else torch.tensor([-1] * text[0] + list(frame) + [-1] * text[1]),
    )


@pytest.fixture
def tiny():
    return random_tokens


@pytest.fixture
def tiny_cache():
    return build_cache


@pytest.fixture
def matrix_flops():
    """A function that runs a call and returns the FLOPs of the matrix products in it."""

    def measure(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    return measure

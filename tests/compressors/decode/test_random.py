import dataclasses

import pytest
import torch

from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_all_heads_keep_text_and_the_same_visual_entries(tiny_cache):
    cache = tiny_cache(visual=6, text=(2, 1), heads=3)
    keep = make("decode", "random").reduce(cache, 2).keep
    assert keep.shape == (1, 3, 5) and (keep == keep[:, :1]).all()
    assert set(keep[0, 0].tolist()) >= {0, 1, 8}


def test_every_entry_is_kept_equally_often(tiny_cache):
    rows = 4000
    cache = dataclasses.replace(tiny_cache(visual=8, text=(1, 1), batch=rows, heads=1), seed=torch.arange(rows))
    keep = make("decode", "random").reduce(cache, 2).keep
    share = torch.bincount(keep.flatten(), minlength=10) / rows
    assert share[0] == share[9] == 1 and (share[1:9] - 2 / 8).abs().max() < 0.03

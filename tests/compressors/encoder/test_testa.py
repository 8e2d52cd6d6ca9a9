"""TESTA inside the tower: ToMe's patches, without sizes in attention."""

import pytest
import torch

from foveate.compressors.base import apply
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def test_merges_what_tome_merges_and_leaves_attention_as_it_is(tiny):
    testa, tome, tokens = make("encoder", "testa"), make("encoder", "tome"), tiny(batch=2)
    assert torch.equal(apply(testa.reduce(tokens, 7), tokens.x), apply(tome.reduce(tokens, 7), tokens.x))
    assert testa.sites(196, 52, 12) == [(block, 196 - 12 * (block + 1)) for block in range(12)]  # the published r
    assert tome.proportional and not testa.proportional and testa.modality == "video"


def test_what_halving_cannot_reach_is_named():
    with pytest.raises(ValueError, match="testa: count 3 is below 13: 4 blocks"):
        make("encoder", "testa").sites(196, 3, 4)

import pytest
import torch

from foveate.compressors.base import apply_position
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast


def test_votes_follow_the_cached_keys_and_places_are_kept(tiny):
    keys = torch.tensor([[[1, 0], [1, 0.1], [0, 1], [1, 0.2], [1, 0.05], [0.1, 1], [-1, 0], [-1, 0.3]]])
    tokens = tiny(n=8, grid=(1, 2, 4), visual_keys=keys)
    method = make("prefill", "saint", threshold=0.75, degree=2)
    assert method.positions == "keep"
    assert apply_position(method.reduce(tokens, 6), tokens.position).tolist() == [[1, 2, 3, 5, 6, 7]]


def test_tokens_go_after_the_published_layers_by_the_keys_of_the_next():
    method = make("prefill", "saint")
    assert [layer for layer, _ in method.sites(576, 144, 32)] == list(range(8, 18))
    assert method.signals(32) == {Signal("visual_keys", layer) for layer in range(8, 18)}
    assert method.signals_at(8, 32) == {Signal("visual_keys", 8)}
    assert method.sites(64, 32, 8) == [(2, 53), (3, 42), (4, 32)]

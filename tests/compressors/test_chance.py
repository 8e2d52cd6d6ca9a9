import pytest
import torch

from foveate.compressors.chance import uniform

pytestmark = pytest.mark.fast
WORD = 2**64 - 1


def finalised(h):
    """SplitMix64's finaliser on unsigned Python integers."""
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & WORD
    return h ^ (h >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62, -(2**63), 123456789])
def test_equals_the_definition_in_exact_integers(seed):
    index = torch.tensor([-1, 0, 1, 2, 575, 10**9])
    wanted = []
    for i in index.tolist():
        mixed = finalised((finalised(seed & WORD) + 0x9E3779B97F4A7C15 * i) & WORD)
        wanted.append((mixed >> 40 & 0xFFFFFF) / 2**24)
    assert uniform(torch.tensor(seed), index).tolist() == wanted


def test_numbers_are_spread_evenly_and_seeds_do_not_share_them():
    numbers = uniform(torch.arange(64).view(-1, 1), torch.arange(256))
    assert numbers.min() >= 0 and numbers.max() < 1
    share = torch.histc(numbers, bins=8, min=0, max=1) / numbers.numel()
    assert (share - 1 / 8).abs().max() < 0.01
    correlation = torch.corrcoef(numbers)
    assert (correlation - torch.eye(64)).abs().max() < 0.3

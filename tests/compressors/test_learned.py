"""What every learned method promises beyond the contract of all: run for each (stage, name) that learns."""

import pytest
import torch

import foveate.compressors  # noqa: F401  (fills the registry)
from foveate.compressors.base import KVReducer, Resampler
from foveate.compressors.learned import DISTILLED, Learned, MissingWeights, on_trial
from foveate.compressors.registry import COMPRESSORS, make
from foveate.compressors.trial import for_method

pytestmark = [pytest.mark.fast, pytest.mark.matrix]

LEARNED = [key for key in sorted(COMPRESSORS) if COMPRESSORS[key].learned]
TAUGHT = [key for key in LEARNED if COMPRESSORS[key].made_by == DISTILLED]
GRIDS = [(1, 3, 4), (1, 5, 7), (1, 1, 9), (1, 4, 4), (1, 12, 12)]
FILMS = [(4, 3, 4), (2, 5, 7), (8, 4, 4), (5, 12, 12)]


def grids(key):
    """Of pictures, or of films where the method is for these alone."""
    return FILMS if COMPRESSORS[key].modality == "video" else GRIDS


def label(key):
    """How a (stage, name) reads in a test's id."""
    return "-".join(key)


def ready(key, grid=(1, 3, 4)):
    """The method with an untrained network for this grid."""
    return on_trial(make(*key), grid)


@pytest.mark.parametrize("key", LEARNED, ids=label)
def test_says_how_to_get_weights_where_there_are_none(key, tiny, tiny_cache):
    method = make(*key)
    act = method.resample if isinstance(method, Resampler) else method.reduce
    given = tiny_cache() if isinstance(method, KVReducer) else for_method(tiny(cls=method.takes_cls), method)
    with pytest.raises(MissingWeights, match=rf"{key[1]}: .*{method.made_by}"):
        act(given, method.reachable((1, 3, 4))[0])


@pytest.mark.parametrize("key", LEARNED, ids=label)
def test_the_network_is_no_part_of_what_the_method_is(key):
    assert isinstance(make(*key), Learned) and make(*key) == ready(key) and hash(make(*key)) == hash(ready(key))
    assert repr(make(*key)) == repr(ready(key))


@pytest.mark.parametrize("key", LEARNED, ids=label)
def test_a_build_repeats_by_seed_and_leaves_the_generator_alone(key):
    before = torch.get_rng_state()
    one, other = ready(key).network.state_dict(), ready(key).network.state_dict()
    assert one and all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)


ALONE = [key for key in TAUGHT if not COMPRESSORS[key].further and not COMPRESSORS[key].windowed]  # without a decoder


@pytest.mark.parametrize("key", ALONE, ids=label)
def test_every_weight_learns(key, tiny):
    grid = grids(key)[0]
    method = ready(key, grid)
    moved = {name: value + 0.1 * torch.ones_like(value) for name, value in method.network.state_dict().items()}
    method.network.load_state_dict(moved)  # away from zeros that hide what lies behind them
    n = grid[0] * grid[1] * grid[2]
    tokens, total = for_method(tiny(n=n, grid=grid, batch=2, cls=method.takes_cls), method), 0
    for count in method.training_counts(grid):
        made = method.resample(tokens, count) if isinstance(method, Resampler) else method.reduce(tokens, count)
        total = total + (made.x if isinstance(method, Resampler) else made.weight).square().sum()
    total.backward()
    assert [n for n, p in method.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("key", TAUGHT, ids=label)
def test_is_trained_at_counts_that_it_can_give(key):
    for grid in grids(key):
        method = ready(key, grid)
        assert method.training_counts(grid) and set(method.training_counts(grid)) <= set(method.reachable(grid))

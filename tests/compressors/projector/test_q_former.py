"""Q-Former: what it reads, what it does not depend on, and its published size."""

from dataclasses import replace

import pytest
import torch

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.networks import sincos
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

GRID = (1, 4, 4)


def method(**settings):
    return untrained(make("projector", "q_former", **settings), Widths(8, 12, 0, 4, 4, GRID))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def published(widths, **settings):
    """The published module, on paper."""
    with torch.device("meta"):
        return make("projector", "q_former", layers=12, width=768, places=False, **settings).build(widths)


def shuffled(tokens, order):
    return replace(tokens, x=tokens.x[:, order], position=tokens.position[:, order])


def test_the_order_of_tokens_does_not_matter_their_places_do(tiny):
    tokens, order = tiny(n=17, grid=GRID, cls=True), torch.randperm(17, generator=torch.Generator().manual_seed(0))
    for places in (True, False):
        made = method(places=places).resample(tokens, 6).x
        assert torch.allclose(method(places=places).resample(shuffled(tokens, order), 6).x, made, atol=1e-5)
    moved = replace(tokens, x=tokens.x[:, order])  # other features at the old places
    blind, seeing = method(places=False), method()
    assert torch.allclose(blind.resample(moved, 6).x, blind.resample(tokens, 6).x, atol=1e-5)
    for parameter in seeing.network.parameters():
        parameter.data.mul_(5)  # away from attention that is all but even
    assert not torch.allclose(seeing.resample(moved, 6).x, seeing.resample(tokens, 6).x, atol=1e-3)


def test_another_order_of_queries_is_another_order_of_tokens(tiny):
    tokens, order = tiny(n=16, grid=GRID), torch.tensor([3, 0, 4, 1, 2])
    one, other = method(queries=5, published=True), method(queries=5, published=True)
    other.network.queries.data = other.network.queries.data[order]
    assert torch.allclose(other.resample(tokens, 5).x, one.resample(tokens, 5).x[:, order], atol=1e-6)


def test_a_grid_with_gaps_and_a_cls_row_can_be_read(tiny):
    tokens = tiny(n=5, grid=GRID, x=torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)))
    tokens = replace(tokens, position=torch.tensor([[-1, 0, 3, 9, 15]]))
    made = method().resample(tokens, 3)
    assert made.x.shape == (1, 3, 12) and made.grid_out is None and made.position.tolist() == [[2, 4, 5]]
    assert (method(published=True).resample(tokens, 3).position == -1).all()
    places = method().places_of(tokens)[0]
    assert (places[0] == 0).all() and not torch.equal(places[1], places[2]) and places.abs().max() <= 1


def test_queries_see_each_other_so_a_prefix_is_another_answer(tiny):
    tokens = tiny(n=16, grid=GRID)
    assert (method().resample(tokens, 8).x[:, :4] - method().resample(tokens, 4).x).abs().max() > 1e-6


def test_at_first_queries_hand_on_what_stands_around_their_places(tiny):
    network = untrained(make("projector", "q_former"), Widths(96, 40, 0, 4, 4, (1, 6, 6))).network
    tokens = tiny(n=36, grid=(1, 6, 6), dim=96)
    made = network(tokens.x, sincos(6, 6, 96).unsqueeze(0), 16)
    places = network.order[:16]
    for place, y in zip(places.tolist(), made[0], strict=True):
        changes = []
        for other in (place, (place + 18) % 36):  # itself, and three rows away
            x = tokens.x.clone()
            x[0, other] += torch.randn(96, generator=torch.Generator().manual_seed(0))
            seen = network(x, sincos(6, 6, 96).unsqueeze(0), 16)[0][places.tolist().index(place)]
            changes.append((seen - y).norm())
        assert changes[0] > 10 * changes[1]
    assert torch.equal(network.queries[:36].sign()[0], network.queries[36:].sign()[0])  # 64 queries, 36 places


def test_every_second_layer_reads_the_picture():
    network = published(Widths(1408, 2560, 0, 39, 32, (1, 16, 16)), queries=32)
    assert [number for number, layer in enumerate(network.layers) if layer.read is not None] == [0, 2, 4, 6, 8, 10]
    assert network.layers[0].talk.heads == 12


def test_the_sizes_of_the_published_module():
    network = published(Widths(1408, 2560, 0, 39, 32, (1, 16, 16)), queries=32)
    assert parameters(network.layers) == 12 * 7_087_872 + 6 * 3_346_944
    assert round((parameters(network) - parameters(network.project)) / 1e6, 1) == 105.2
    assert network.queries.shape == (32, 768)
    small = published(Widths(1152, 896, 0, 26, 24, (1, 27, 27)), queries=64)
    assert round(parameters(small) / 1e6, 1) == 103.5


def test_the_size_of_the_light_module():
    with torch.device("meta"):
        network = make("projector", "q_former").build(Widths(1152, 896, 0, 26, 24, (1, 27, 27)))
    assert round(parameters(network) / 1e6, 1) == 16.5
    assert [layer.read is not None for layer in network.layers] == [True, False, True, False]
    assert network.layers[0].talk.heads == 8


def test_a_narrow_host_has_narrow_queries_and_a_small_picture_fewer():
    assert method().network.queries.shape == (64, 8)
    assert list(make("projector", "q_former").reachable((1, 24, 24))) == list(range(1, 65))
    assert make("projector", "q_former").reachable((1, 3, 4))[-1] == 12


@pytest.mark.parametrize("settings", [{"queries": 0}, {"layers": 0}, {"width": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="q_former: .*each must be 1 or more"):
        make("projector", "q_former", **settings)


def test_widths_that_places_cannot_fill_and_several_frames_are_refused(tiny):
    with pytest.raises(ValueError, match="q_former: places for 6 features: must be a multiple of 4"):
        make("projector", "q_former").build(Widths(6, 8, 0, 4, 4, GRID))
    with pytest.raises(ValueError, match="q_former: takes one frame, got 2"):
        method().resample(tiny(n=8, grid=(2, 2, 2)), 3)

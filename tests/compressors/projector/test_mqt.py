"""MQT: prefixes, places, and what its attention reads."""

import pytest
import torch

from foveate.compressors.learned import Widths, untrained
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

GRID = (1, 4, 4)


def method(grid=GRID, **settings):
    return untrained(make("projector", "mqt", **settings), Widths(8, 12, 0, 4, 4, grid))


def test_fewer_tokens_are_the_first_of_more(tiny):
    whole, tokens = method(published=True), tiny(n=16, grid=GRID, batch=2)
    everything = whole.resample(tokens, 16).x
    for m in (1, 2, 7, 15):
        assert torch.allclose(whole.resample(tokens, m).x, everything[:, :m], atol=1e-6)


def test_queries_in_another_order_leave_in_that_of_their_places(tiny):
    whole, tokens = method(), tiny(n=16, grid=GRID, batch=2)
    order, everything = whole.network.order, whole.resample(tokens, 16).x  # row i: the query that stands at place i
    for m in (1, 2, 7, 15):
        assert torch.allclose(whole.resample(tokens, m).x, everything[:, order[:m].sort().values], atol=1e-6)


def test_at_first_queries_read_what_stands_around_them_and_the_first_reads_everything():
    network = untrained(make("projector", "mqt"), Widths(96, 96, 0, 4, 4, (1, 6, 6))).network
    q, k = network.attention.q(network.marks), network.attention.k(network.places)
    q, k = (part.unflatten(-1, (2, 48)).transpose(0, 1) for part in (q, k))
    weight = (q @ k.mT / 48**0.5).softmax(-1)  # (2, 36, 36)
    assert torch.equal(weight[:, 9:].argmax(-1), network.order[9:].expand(2, -1))
    many = (-(weight * weight.log()).nansum(-1)).exp()  # places that share the attention
    assert (many[:, 0] > 18).all() and (many[:, -1] < 9).all()


def test_keys_of_places_alone_make_it_linear_in_what_is_read(tiny):
    blind = method(keys="places")
    blind.network.norm_v = torch.nn.Identity()
    one, two = tiny(n=16, grid=GRID, seed=1), tiny(n=16, grid=GRID, seed=2)
    both = tiny(n=16, grid=GRID, x=one.x + two.x)
    zero = tiny(n=16, grid=GRID, x=torch.zeros_like(one.x))
    y, z, s, rest = (blind.resample(t, 5).x for t in (one, two, both, zero))
    assert torch.allclose(s - rest, (y - rest) + (z - rest), atol=1e-5)
    seeing = method()
    torch.nn.init.ones_(seeing.network.norm_k.weight)  # at first it sees places alone
    seeing.network.norm_v = torch.nn.Identity()
    y, z, s, rest = (seeing.resample(t, 5).x for t in (one, two, both, zero))
    assert not torch.allclose(s - rest, (y - rest) + (z - rest), atol=1e-4)


def test_the_number_of_tokens_goes_from_one_to_all_queries(tiny):
    wide = make("projector", "mqt")
    assert list(wide.reachable((1, 24, 24))) == list(range(1, 257))
    assert list(wide.reachable((1, 12, 12))) == list(range(1, 145))
    assert method((1, 20, 20)).network.lattice == (16, 16)
    with pytest.raises(ValueError, match="mqt: count 0"):
        method().resample(tiny(n=16, grid=GRID), 0)


def test_a_view_of_another_size_reads_stretched_places(tiny):
    made = method().resample(tiny(n=30, grid=(1, 5, 6)), 16)
    assert made.x.shape == (1, 16, 12) and made.grid_out is None
    rows, columns = [0, 1, 3, 4], [0, 2, 3, 5]  # of the 5 x 6 that lie in the middles of 4 x 4
    assert made.position.tolist() == [[row * 6 + column for row in rows for column in columns]]
    assert (method(published=True).resample(tiny(n=16, grid=GRID), 3).position == -1).all()
    assert method().reachable((1, 2, 3))[-1] == 6


def test_one_draw_in_four_trains_all_queries():
    drawn = make("projector", "mqt").training_counts((1, 24, 24))
    assert set(drawn) == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert drawn.count(256) / len(drawn) == pytest.approx(0.25, abs=0.03)


def test_the_size_of_the_published_module():
    network = make("projector", "mqt").build(Widths(1024, 4096, 0, 23, 32, (1, 24, 24)))
    assert sum(p.numel() for p in network.parameters()) == 256 * 1024 + 4 * 1024**2 + 4 * 1024 + 6 * 1024 + 1024 * 4096
    assert network.attention.heads == 16


@pytest.mark.parametrize("settings", [{"queries": 0}, {"keys": "pos"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="mqt: queries"):
        make("projector", "mqt", **settings)


def test_widths_that_positions_cannot_fill_are_refused():
    with pytest.raises(ValueError, match="positions of 6 features: must be a multiple of 4"):
        make("projector", "mqt").build(Widths(6, 8, 0, 4, 4, GRID))


def test_several_frames_are_refused(tiny):
    with pytest.raises(ValueError, match="mqt: takes one frame, got 2"):
        method((1, 2, 2)).resample(tiny(n=8, grid=(2, 2, 2)), 3)

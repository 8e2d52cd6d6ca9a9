"""p-MoD: the published schedule and weights, and which tokens run."""

from dataclasses import replace

import pytest
import torch

from foveate.compressors.base import apply
from foveate.compressors.learned import Widths, on_trial, untrained
from foveate.compressors.prefill.p_mod import PMoD, shares, shift_of

pytestmark = pytest.mark.fast


class TestSchedule:
    def test_the_published_one(self):
        found = shares(32, 0.5, 0.15)
        assert found[:8] == [1.0] * 8 and found[24:] == [0.15] * 8
        wanted = {8: 0.844, 12: 0.674, 16: 0.475, 20: 0.280, 23: 0.156}
        assert {layer: round(found[layer], 3) for layer in wanted} == wanted
        assert sum(found) / 32 == pytest.approx(0.5375, abs=5e-5)

    def test_counts_are_rounded_down_and_the_last_layers_get_the_count(self):
        sites = dict(PMoD().sites(576, 86, 32))
        assert list(sites) == list(range(8, 25)) and sites[24] == 86 == int(0.15 * 576)
        assert [sites[layer] for layer in (8, 16, 23)] == [486, 273, 89]

    def test_a_high_count_lifts_the_layers_that_would_get_less(self):
        assert PMoD().sites(100, 60, 32)[0] == (8, 84) and PMoD().sites(100, 60, 32)[-1] == (14, 60)
        assert PMoD().sites(100, 95, 32) == [(8, 95)]

    def test_a_shift_is_found_for_a_mean(self):
        assert shift_of(32, 0.5375) == pytest.approx(0.5, abs=2e-3)
        for mean in (0.3, 0.45, 0.7):
            found = shares(32, shift_of(32, mean), min(0.15, mean / 2))
            assert mean - 0.03 < sum(found) / 32 <= mean + 1e-9
        method = PMoD(mean=0.3)
        assert method.sites(1000, 150, 32)[-1][1] == 150 and min(method.routed(32)) < 8

    @pytest.mark.parametrize("bad", [{"shift": 1.4}, {"shift": -0.6}, {"mean": 0.0}, {"mean": 1.0}])
    def test_numbers_out_of_range_are_refused(self, bad):
        with pytest.raises(ValueError, match=f"p_mod: {next(iter(bad))} "):
            PMoD(**bad)


@pytest.fixture
def four(tiny):
    """Four tokens whose logits are .5, -1, 2 and 0 at the first site, in a decoder of four layers."""
    method = on_trial(PMoD())
    with torch.no_grad():
        method.network.weight[0, 0] = 1.0
    x = torch.zeros(1, 4, 8)
    x[0, :, 0] = torch.tensor([0.5, -1.0, 2.0, 0.0])
    x[0, :, 1] = torch.arange(4) + 1.0
    return method, tiny(n=4, grid=(1, 2, 2), x=x)


def test_weights_and_choice_by_hand(four):
    method, tokens = four
    reduction = method.reduce(tokens, 2)
    assert reduction.weight[0, :, 0].tolist() == pytest.approx([1.0924, 0.8477, 1.1928, 1.0], abs=5e-5)
    assert reduction.anchor.tolist() == [[0, 2]] and reduction.into is None
    assert torch.equal(apply(reduction, tokens.x), tokens.x[:, [0, 2]])


def test_each_layer_has_a_router_of_its_own(four):
    method, tokens = four
    with torch.no_grad():
        method.network.bias[1] = -0.5
        method.network.weight[1, 1] = 1.0
    later = method.reduce(replace(tokens, site=1), 2)
    assert later.anchor.tolist() == [[2, 3]]
    assert later.weight[0, :, 0].tolist() == pytest.approx(
        [1 + 0.2 * torch.tanh(torch.tensor(z)).item() for z in (0.5, 1.5, 2.5, 3.5)]
    )


def test_untrained_all_weights_are_one_and_the_first_tokens_run(tiny):
    reduction = on_trial(PMoD()).reduce(tiny(batch=2), 5)
    assert (reduction.weight == 1).all() and reduction.anchor.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_a_layer_has_one_number_more_than_the_decoder_is_wide():
    network = untrained(PMoD(), Widths(8, 64, 0, 4, 32, (1, 3, 4))).network
    assert sum(value.numel() for value in network.parameters()) == 31 * 65

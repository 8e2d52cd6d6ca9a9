"""Video-XL-Pro's selector: what scores are, how many stay, and how scores learn."""

import pytest
import torch
from torch.nn.functional import gelu

from foveate.compressors.base import apply
from foveate.compressors.learned import on_trial
from foveate.compressors.projector.pvc import waves
from foveate.compressors.registry import make
from foveate.compressors.signals import Signal

pytestmark = pytest.mark.fast

GRID = (4, 2, 2)


def ready(**options):
    return on_trial(make("prefill", "video_xl_pro", **options), GRID)


def moved(method, seed=0):
    """The same with weights far from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return method


def given(tiny, *values):
    """Tokens of one feature, held against 1."""
    x = torch.tensor(values, dtype=torch.float32).view(1, -1, 1).expand(-1, -1, 8) / 8
    return tiny(n=len(values), grid=(len(values), 1, 1), hidden_states=x.contiguous(), spoken=torch.ones(1, 8))


@torch.no_grad()
def test_the_best_held_against_the_words_stay_in_order_and_scores_go_from_0_to_1(tiny):
    tokens = given(tiny, 3, -1, 2, 7)
    assert ready().scores(tokens)[0].tolist() == pytest.approx([0.5, 0, 0.375, 1])
    assert ready().logits(tokens)[0].tolist() == pytest.approx([4, 0, 3, 8])
    reduction = ready().reduce(tokens, 2)
    assert reduction.anchor.tolist() == [[0, 3]] and reduction.into is None
    assert ready().reduce(given(tiny, 1, 5, 1, 5), 3).anchor.tolist() == [[0, 1, 3]]
    level = given(tiny, 2, 2, 2, 2)
    assert ready().scores(level).tolist() == [[0, 0, 0, 0]]  # no division by nothing
    assert ready().reduce(level, 2).anchor.tolist() == [[0, 1]]


@torch.no_grad()
def test_the_order_of_words_does_not_matter():
    method, words = moved(ready()), torch.randn(7, 8, generator=torch.Generator().manual_seed(2))
    wanted = torch.stack([gelu(method.network.words.weight @ word) for word in words]).mean(0)
    assert torch.allclose(method.spoken(words), wanted, atol=1e-5)
    assert torch.allclose(method.spoken(words.flip(0)), wanted, atol=1e-5)
    assert method.spoken_flops(7) == 2 * 7 * 8 * 8


def test_all_tokens_stay_what_they_are_at_a_share_of_one(tiny):
    tokens, method = tiny(n=16, grid=GRID), moved(ready(multiple=16))
    assert method.sites(16, 16, 8) == [(1, 16)]
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            reduction = method.reduce(tokens, 16)
        assert reduction.anchor.tolist() == [list(range(16))]
        assert torch.equal(apply(reduction, tokens.x), tokens.x)


@pytest.mark.parametrize(("count", "kept"), [(115, 112), (112, 112), (17, 16), (16, 16), (15, 15), (1, 1)])
def test_a_multiple_of_16_stays_as_published_where_there_are_as_many(count, kept):
    assert make("prefill", "video_xl_pro", multiple=16).sites(144, count, 32) == [(1, kept)]
    assert make("prefill", "video_xl_pro").sites(144, count, 32) == [(1, count)]


def test_both_sides_are_read_as_they_enter_the_decoder():
    for depth in (4, 32):
        wanted = {Signal("hidden_states", 0), Signal("spoken", 0)}
        assert make("prefill", "video_xl_pro").signals_at(1, depth) == wanted


@torch.no_grad()
def test_a_token_reads_the_time_of_its_own_frame_and_at_first_nothing(tiny):
    tokens, frame = tiny(n=16, grid=GRID), torch.arange(4).repeat_interleave(4)[None]
    x = tokens.signals["hidden_states"]
    assert torch.equal(ready().network.timed(x, frame, 4), x)
    network = moved(ready()).network
    found, moments = network.timed(x, frame, 4), waves(4, x.device).view(4, 8, 32)
    for n in (0, 7, 15):
        asked = network.ask(x[0, n]).view(4, 32)
        weight = (asked @ moments[n // 4].T / 32**0.5).softmax(-1)  # (heads, moments)
        wanted = x[0, n] + network.tell((weight @ moments[n // 4]).flatten())
        assert torch.allclose(found[0, n], wanted, atol=1e-5)
    assert torch.equal(network.timed(x, torch.full_like(frame, -1), 4), x)
    still = x[:, :1].expand(-1, 16, -1)
    scores = network(still, tokens.signals["spoken"], frame, 4)[0].view(4, 4)
    assert torch.allclose(scores, scores[:, :1].expand(-1, 4), atol=1e-5) and scores[:, 0].unique().numel() == 4


def test_scores_learn_through_a_weight_of_exactly_one(tiny):
    method, tokens = moved(ready()), tiny(n=16, grid=GRID)
    reduction = method.reduce(tokens, 5)
    assert torch.equal(reduction.weight, torch.ones(1, 16, 1)) and reduction.weight.requires_grad
    assert torch.equal(apply(reduction, tokens.x), tokens.x.gather(1, reduction.anchor[..., None].expand(-1, -1, 8)))
    apply(reduction, tokens.x).square().sum().backward()
    for name in ("ask.weight", "ask.bias", "tell.weight"):
        assert method.network.get_parameter(name).grad.abs().sum() > 0, name


def test_a_multiple_below_one_is_named():
    with pytest.raises(ValueError, match="video_xl_pro: multiple 0 is below 1"):
        make("prefill", "video_xl_pro", multiple=0)

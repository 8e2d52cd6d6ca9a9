import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from foveate.compressors.base import apply, apply_size
from foveate.compressors.grouping import joined, sample
from foveate.compressors.matching import cosine
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def clip(tiny, *frames):
    """Tokens of frames that may hold different numbers of them."""
    width = max(len(frame) for frame in frames)
    x = torch.tensor([token for frame in frames for token in frame], dtype=torch.float32).unsqueeze(0)
    tokens = tiny(n=x.shape[1], grid=(len(frames), 1, width), x=x)
    position = [t * width + i for t, frame in enumerate(frames) for i in range(len(frame))]
    return dataclasses.replace(tokens, position=torch.tensor([position]))


def made(tokens, count=None, **fields):
    """The slots of the first row, the used ones alone."""
    reduction = make("projector", "llava_scissor", **fields).reduce(tokens, tokens.n if count is None else count)
    return apply(reduction, tokens.x)[0, reduction.anchor[0] >= 0]


def by_loops(tokens, tau):
    """The rule with lists: components by flooding, means of means, refill; rows of one feature vector each."""

    def parts(x):
        unit = normalize(x, dim=-1)
        edge = unit @ unit.T > tau
        seen, found = set(), []
        for start in range(len(x)):
            stack, members = [start], []
            while stack:
                i = stack.pop()
                if i not in seen:
                    seen.add(i)
                    members.append(i)
                    stack += [j for j in range(len(x)) if edge[i, j]]
            if members:
                found.append((max(sorted(members), key=lambda i: int(edge[i].sum())), sorted(members)))
        return [members for _, members in sorted(found)]

    frames = tokens.x[0].split(tokens.grid[1] * tokens.grid[2])
    first = torch.stack([frame[members].mean(0) for frame in frames for members in parts(frame)])
    second = torch.stack([first[members].mean(0) for members in parts(first)])
    nearest = (normalize(tokens.x[0], dim=-1) @ normalize(second, dim=-1).T).argmax(-1)
    slots = []
    for k, token in enumerate(second):
        own = tokens.x[0][nearest == k]
        slots.append((token + own.sum(0)) / (1 + len(own)))
    return torch.stack(slots)


def test_the_mean_of_means_is_refilled_with_all_tokens(tiny):
    tokens = clip(tiny, [(1, 0), (1, 0.2)], [(1, 0.4)])
    assert made(tokens, threshold=0.9).flatten().tolist() == pytest.approx([1, 0.2125])


def test_three_slots_from_two_frames(tiny):
    tokens = clip(tiny, [(1, 0), (1, 0.2), (0, 1)], [(1, 0.1), (0, 2), (-1, 0)])
    assert torch.allclose(made(tokens, threshold=0.9), torch.tensor([[1, 0.1], [0, 1.5], [-1, 0]]), atol=1e-6)
    size = apply_size(make("projector", "llava_scissor", threshold=0.9).reduce(tokens, 6), tokens.size)
    assert size[0, :3].tolist() == [3, 2, 1]


def test_likeness_is_handed_on_from_neighbour_to_neighbour(tiny):
    angle = torch.tensor([0.0, 20, 40]).deg2rad()
    tokens = clip(tiny, torch.stack([angle.cos(), angle.sin()], dim=-1).tolist())
    assert made(tokens, threshold=0.9).flatten().tolist() == pytest.approx([0.9019, 0.3283], abs=5e-5)


def test_components_stand_in_the_order_of_their_hubs():
    likeness = torch.eye(6)
    for i, j in ((0, 2), (2, 5), (1, 3)):
        likeness[i, j] = likeness[j, i] = 0.95
    everywhere = torch.ones(1, 6, 6, dtype=torch.bool)
    name, members = joined(likeness.unsqueeze(0), everywhere, torch.full((1, 1, 1), 0.9), everywhere)
    assert name.tolist() == [[2, 1, 2, 1, 4, 2]]  # hubs 1, 2 and 4
    assert members.tolist() == [[0, 2, 3, 0, 1, 0]]


def test_in_a_single_frame_tokens_nearest_to_their_own_mean_leave_it_as_it_is(tiny):
    tokens = clip(tiny, [(1, 0), (1, 0.1), (0, 1), (0.1, 1), (-1, 0)])
    wanted = torch.tensor([[1, 0.05], [0.05, 1], [-1, 0]])
    assert torch.allclose(made(tokens, threshold=0.9), wanted, atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 5, 6), (3, 3, 4), (4, 2, 3)], ids=str)
@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.8, 0.95])
def test_equals_the_rule_by_loops(tiny, grid, threshold):
    n = grid[0] * grid[1] * grid[2]
    common = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(1))
    tokens = tiny(n=n, grid=grid, dim=4, seed=2)
    tokens = dataclasses.replace(tokens, x=tokens.x + common)
    assert torch.allclose(made(tokens, threshold=threshold), by_loops(tokens, threshold), atol=1e-5)


def test_above_one_nothing_is_joined_and_below_minus_one_everything(tiny):
    tokens = tiny(n=24, grid=(2, 3, 4))
    assert torch.equal(made(tokens, threshold=1.0), tokens.x[0]) and torch.equal(made(tokens), tokens.x[0])
    means = tokens.x.view(2, 12, -1).mean(1).mean(0)
    assert torch.allclose(made(tokens, threshold=-1.1)[0], (means + tokens.x[0].sum(0)) / 25, atol=1e-6)
    assert len(made(tokens, threshold=-1.1)) == 1
    alone = clip(tiny, [(3, 4)])
    assert made(alone, threshold=0.9).tolist() == [[3, 4]]


def test_the_count_is_met_exactly_and_is_a_ceiling_under_a_threshold(tiny):
    tokens = tiny(n=48, grid=(3, 4, 4), dim=4, batch=2)
    for count in (1, 2, 5, 17, 40, 47):
        reduction = make("projector", "llava_scissor").reduce(tokens, count)
        assert reduction.count is None and reduction.anchor.shape == (2, count)
        assert len(made(tokens, count, threshold=0.9)) <= count
    loose = len(made(tokens, threshold=0.5))
    assert 1 < loose < 48 and len(made(tokens, loose + 1, threshold=0.5)) == loose


def test_a_higher_threshold_gives_no_fewer_components_of_one_frame(tiny):
    tokens = tiny(n=196, grid=(1, 14, 14), seed=1)
    likeness = cosine(tokens.x, tokens.x)
    everywhere = torch.ones(1, 196, 196, dtype=torch.bool)
    numbers = []
    for tau in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        name, _ = joined(likeness, everywhere, torch.full((1, 1, 1), tau), everywhere)
        numbers.append(name.unique().numel())
    assert numbers == sorted(numbers) and numbers[0] == 1 and numbers[-1] == 196
    assert numbers[-2] > 150  # they jump between .7 and .9


def test_equal_tokens_are_split_until_the_count_is_met(tiny):
    tokens = tiny(n=12, grid=(1, 3, 4), x=torch.ones(1, 12, 3))
    reduction = make("projector", "llava_scissor").reduce(tokens, 5)
    assert reduction.anchor.shape == (1, 5) and torch.allclose(apply(reduction, tokens.x), torch.ones(1, 5, 3))
    assert len(made(tokens, threshold=0.9)) == 1


def test_tokens_least_like_their_slot_are_split_off_first(tiny):
    tokens = clip(tiny, [(1, 0), (1, 0), (1, 0), (0.9, 0.1)])
    assert make("projector", "llava_scissor").reduce(tokens, 2).anchor.tolist() == [[0, 3]]


def test_a_sample_covers_all_tokens_of_a_usual_clip_and_the_result_is_exact(tiny):
    everyone = torch.ones(1, 1, 1, dtype=torch.bool)
    chance = torch.rand(1, 300)
    assert sample(chance, everyone.expand(1, 300, 300), 0.05).all()
    drawn = sample(chance, everyone.expand(1, 300, 300), 0.2)
    assert int(drawn.sum()) == 143  # ceil(ln 300 / .04)
    assert chance[0, drawn[0]].min() > chance[0, ~drawn[0]].max()
    tokens = tiny(n=36, grid=(3, 3, 4), dim=3)
    assert torch.equal(made(tokens, threshold=0.8, epsilon=0.05), made(tokens, threshold=0.8))


def test_a_small_sample_joins_fewer_and_depends_on_the_seed_alone(tiny):
    tokens = tiny(n=196, grid=(1, 14, 14), dim=4)
    exact, drawn = made(tokens, threshold=0.8), made(tokens, threshold=0.8, epsilon=1.0)  # six of 196
    assert len(drawn) > len(exact)
    assert torch.equal(made(tokens, threshold=0.8, epsilon=1.0), drawn)
    other = dataclasses.replace(tokens, seed=tokens.seed + 1)
    assert not torch.equal(made(other, threshold=0.8, epsilon=1.0)[:5], drawn[:5])


def test_zero_vectors_are_joined_to_nothing(tiny):
    tokens = clip(tiny, [(0, 0), (1, 0), (0, 0)])
    assert torch.equal(made(tokens, threshold=0.5), tokens.x[0])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="llava_scissor: epsilon 0.0 is not above 0"):
        make("projector", "llava_scissor", epsilon=0.0)

"""The contract must be able to say what published systems do: small examples worked out by hand, applied as by a host.

No method of ours runs here. Each test writes down the answer that a system's rule gives and checks what comes of it.
"""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cosine_similarity

from foveate.compressors.base import (
    KVReduction,
    Reduction,
    Resampled,
    Resampler,
    Selector,
    Streamer,
    apply,
    apply_kv,
    apply_position,
    apply_size,
    in_order,
    then,
)

pytestmark = pytest.mark.fast


def column(*values):
    """One row of tokens with one feature each: (1, N, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def to(*slots):
    """`into` of one row with J = 1."""
    return torch.tensor(slots).view(1, -1, 1)


class TestToMe:
    """Merges in several blocks: means weighted by size, sizes add up, the order may mix between blocks."""

    FEATURES = torch.tensor([[[1, 0], [1, 0.2], [0, 1], [0.1, 1], [1, 1], [-1, 0.5]]])
    # keys = features; best matches 0 -> 1 (.9806), 2 -> 3 (.995), 4 -> 1 (.8321); r = 2 merges the first two
    BLOCK = Reduction(
        torch.tensor([[4, 1, 3, 5]]), to(1, 1, 2, 2, 0, 3), torch.tensor([0.5, 0.5, 0.5, 0.5, 1, 1]).view(1, 6, 1)
    )

    def test_one_block(self):
        merged, size = apply(self.BLOCK, self.FEATURES), apply_size(self.BLOCK, torch.ones(1, 6))
        assert torch.allclose(merged, torch.tensor([[[1, 1], [1, 0.1], [0.05, 1], [-1, 0.5]]]))
        assert size.tolist() == [[1, 2, 2, 1]]
        assert torch.allclose((size.unsqueeze(-1) * merged).sum(1), torch.tensor([[2.1, 3.7]]))

    def test_a_second_block_still_takes_a_true_mean_because_sizes_travel(self):
        # slots of sizes 1 and 2 merge: weights 1/3 and 2/3
        again = Reduction(torch.tensor([[1, 2, 3]]), to(0, 0, 1, 2), torch.tensor([1 / 3, 2 / 3, 1, 1]).view(1, 4, 1))
        whole = then(self.BLOCK, again, 6)
        assert torch.allclose(apply(whole, self.FEATURES)[0, 0], self.FEATURES[0, [0, 1, 4]].mean(0))
        assert apply_size(whole, torch.ones(1, 6)).tolist() == [[3, 2, 1]]

    def test_leaving_the_encoder_tokens_are_in_raster_order_again(self):
        assert apply_position(in_order(self.BLOCK), torch.arange(6).view(1, -1)).tolist() == [[1, 3, 4, 5]]


class TestFiCoCo:
    """A dropped token is spread over several survivors: J = 2, weights divided by what each survivor received."""

    X = column(4, 10, 20, 8)  # 0 and 3 go; correlations .6 .2 and .1 .5 to survivors 1 and 2

    def test_both_targets(self):
        first, second = 1 + 0.75 + 1 / 6, 1 + 0.25 + 5 / 6
        into = torch.tensor([[[0, 1], [0, -1], [1, -1], [0, 1]]])
        weight = torch.tensor(
            [[[0.75 / first, 0.25 / second], [1 / first, 0], [1 / second, 0], [1 / 6 / first, 5 / 6 / second]]]
        )
        reduction = Reduction(torch.tensor([[1, 2]]), into, weight)
        assert apply(reduction, self.X).flatten().tolist() == pytest.approx([7.478, 13.28], abs=5e-4)
        assert apply_size(reduction, torch.ones(1, 4)).tolist() == [[2, 2]]

    def test_best_target_only(self):
        reduction = Reduction(torch.tensor([[1, 2]]), to(0, 0, 1, 1), torch.full((1, 4, 1), 0.5))
        assert apply(reduction, self.X).flatten().tolist() == [7, 14]


class TestTRIM:
    """Kept tokens, then the mean of all the others in a slot that has no place; the number is each image's own."""

    SCORES = torch.tensor([0.25, 0.26, 0.24, 0.25, 0.27, 0.26, 0.25, 0.24, 0.02, 0.26, 0.25, 0.05])

    def reduction(self, kept, n, ceiling):
        rest = [i for i in range(n) if i not in kept]
        into = [kept.index(i) if i in kept else len(kept) for i in range(n)]
        weight = [1.0 if i in kept else 1 / len(rest) for i in range(n)]
        anchor = kept + [-1] * (ceiling - len(kept))
        return Reduction(
            torch.tensor([anchor]), to(*into), torch.tensor(weight).view(1, n, 1), torch.tensor([len(kept) + 1])
        )

    def test_mean_token_comes_last_and_nothing_is_lost(self):
        p = (-self.SCORES).softmax(0)
        low, high = torch.quantile(p, 0.25), torch.quantile(p, 0.75)
        outliers = (p > high + 1.5 * (high - low)).nonzero().flatten().tolist()
        assert outliers == [8, 11]
        x = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(0))
        reduction = in_order(self.reduction(outliers, 12, ceiling=5))
        tokens = apply(reduction, x)
        assert reduction.anchor.tolist() == [[8, 11, -1, -1, -1]] and reduction.count.tolist() == [3]
        assert torch.allclose(tokens[0, 2] * 10 + tokens[0, 0] + tokens[0, 1], x[0].sum(0), atol=1e-5)
        assert apply_size(reduction, torch.ones(1, 12)).tolist() == [[1, 1, 10, 0, 0]]
        assert apply_position(reduction, torch.arange(12).view(1, -1)).tolist() == [[8, 11, -1, -1, -1]]

    def test_no_outlier_leaves_the_mean_token_alone(self):
        reduction = self.reduction([], 4, ceiling=2)
        assert apply(reduction, column(1, 2, 3, 6)).flatten().tolist() == [3, 0]


class TestVisionZip:
    """CLS is row 0 and may be kept; contextual tokens are their target plus the mean of their members, undivided."""

    HIDDEN = column(50, 10, 2, 4, 8, 6, 12)  # CLS, then six patches
    ANCHOR = torch.tensor([[0, 1, 4, 2, 5]])  # CLS and patches 0, 3; targets are patches 1 and 4
    INTO = to(0, 1, 3, 4, 2, 4, 4)

    def test_sum_as_released(self):
        reduction = Reduction(self.ANCHOR, self.INTO, torch.tensor([1, 1, 1, 0.5, 1, 1, 0.5]).view(1, 7, 1))
        assert apply(reduction, self.HIDDEN).flatten().tolist() == [50, 10, 8, 2, 14]
        places = apply_position(in_order(reduction), torch.arange(-1, 6).view(1, -1))
        assert places.tolist() == [[-1, 0, 1, 3, 4]]  # CLS first: its anchor is row 0

    def test_mean_as_printed(self):
        third = 1 / 3
        reduction = Reduction(self.ANCHOR, self.INTO, torch.tensor([1, 1, 1, third, 1, third, third]).view(1, 7, 1))
        assert apply(reduction, self.HIDDEN).flatten().tolist() == pytest.approx([50, 10, 8, 2, 22 / 3])


class TestQFormer:
    """Learned queries read all tokens, CLS too, in place of the projector; what comes out has no place in the image."""

    @dataclass(frozen=True)
    class Toy(Resampler):
        name, hook, takes_cls = "toy_queries", "instead", True
        queries: tuple[float, ...] = (-1.0, 0.0, 1.0)

        def reachable(self, grid):
            return [len(self.queries)]

        def make_tokens(self, tokens, count):
            query = torch.tensor(self.queries).view(1, count, 1)
            attention = (query * tokens.x.float().sum(-1).unsqueeze(1)).softmax(-1)  # (B, M, N)
            return Resampled(attention @ tokens.x.float(), torch.full((tokens.x.shape[0], count), -1))

    def test_shuffled_tokens_change_nothing_and_shuffled_queries_shuffle_the_output(self, tiny):
        tokens = tiny(n=13, cls=True)
        made = self.Toy().resample(tokens, 3)
        assert made.x.shape == (1, 3, 8) and made.position.tolist() == [[-1, -1, -1]] and made.grid_out is None
        shuffled = dataclasses.replace(tokens, x=tokens.x[:, torch.randperm(13)])
        assert torch.allclose(self.Toy().resample(shuffled, 3).x, made.x, atol=1e-5)
        assert torch.allclose(self.Toy((1.0, -1.0, 0.0)).resample(tokens, 3).x, made.x[:, [2, 0, 1]], atol=1e-5)

    def test_only_the_trained_number_of_queries_can_be_asked_for(self, tiny):
        with pytest.raises(ValueError, match="count 4 is not reachable"):
            self.Toy().resample(tiny(), 4)


class TestPyramidDrop:
    """The same rule at several layers, each time on what is left."""

    def test_a_host_walks_the_sites(self):
        position = torch.arange(8).view(1, -1)
        score = torch.tensor([5.0, 1, 7, 3, 8, 2, 6, 4])  # the same at every layer, for this example
        for _, count in [(2, 4), (4, 2), (6, 1)]:
            kept = score[position[0]].argsort(descending=True, stable=True)[:count].sort().values
            position = apply_position(Reduction(kept.view(1, -1)), position)
        assert position.tolist() == [[4]]


class TestPACT:
    """Clusters of at most a distance: a centre keeps its place and holds the mean, far tokens go, sizes weigh in."""

    def test_adaptive_clusters_with_positions_kept(self):
        angles = torch.tensor([0.0, 10, 20, 60, 65]).deg2rad()
        keys = torch.stack([angles.cos(), angles.sin()], -1)
        distance = 1 - keys @ keys.T
        order = torch.exp(-((distance / 2) ** 2)).sum(1).argsort(descending=True).tolist()
        centres = []
        for i in order:  # by density: a centre if farther than .05 from all centres
            if all(distance[i, c] > 0.05 for c in centres):
                centres.append(i)
        assert order == [2, 1, 3, 0, 4] and centres == [2, 3, 0]

        weight = torch.tensor([1, 0.5, 0.5, 0.5, 0.5]).view(1, 5, 1)
        reduction = in_order(
            Reduction(torch.tensor([[2, 3, 0, -1]]), to(2, 0, 0, 1, 1), weight, count=torch.tensor([3]))
        )
        assert apply(reduction, column(1, 2, 4, 6, 10)).flatten().tolist() == [1, 3, 8, 0]
        assert apply_position(reduction, torch.tensor([[3, 4, 9, 11, 12]])).tolist() == [[3, 9, 11, -1]]
        assert apply_size(reduction, torch.ones(1, 5))[0, :3].log().exp().tolist() == pytest.approx([1, 2, 2])

    def test_a_token_too_far_from_every_centre_is_dropped(self):
        reduction = Reduction(torch.tensor([[0]]), to(0, 0, -1), torch.tensor([0.5, 0.5, 0]).view(1, 3, 1))
        assert apply(reduction, column(1, 3, 100)).item() == 2
        assert apply_size(reduction, torch.ones(1, 3)).item() == 2


class TestLookM:
    """Evicted cache entries merge into survivors, each head by itself, keys and values with the same weights."""

    ENTRIES = torch.arange(8.0).view(1, 1, 8, 1) * 4  # text 0, 1, 6, 7; image 2 .. 5
    KEEP = torch.tensor([[[0, 1, 4, 6, 7]]])  # the best image entry is 4

    def test_pivot_with_one_member_counts_three_quarters_and_one_quarter(self):
        into = torch.tensor([[[0, 1, -1, 2, 2, -1, 3, 4]]])  # 3 joins 4; 2 and 5 are evicted
        weight = torch.tensor([[[1, 1, 0, 0.25, 0.75, 0, 1, 1]]])
        merged = apply_kv(KVReduction(self.KEEP, into, weight), self.ENTRIES)
        assert merged.flatten().tolist() == [0, 4, 0.25 * 12 + 0.75 * 16, 24, 28]

    def test_average_with_one_member_counts_half_each(self):
        into = torch.tensor([[[0, 1, -1, 2, 2, -1, 3, 4]]])
        weight = torch.tensor([[[1, 1, 0, 0.5, 0.5, 0, 1, 1]]])
        assert apply_kv(KVReduction(self.KEEP, into, weight), self.ENTRIES).flatten().tolist() == [0, 4, 14, 24, 28]

    def test_no_eviction_leaves_the_cache_as_it_is(self):
        assert torch.equal(apply_kv(KVReduction(torch.arange(8).view(1, 1, 8)), self.ENTRIES), self.ENTRIES)


class TestSparseMM:
    """Every head of every layer has its own budget: ragged lengths, the unused slots empty."""

    def test_budgets_follow_the_scores(self):
        share, window, floor, remaining = torch.tensor([[0.5, 0.3], [0.15, 0.05]]), 32, 3, 116
        capacity = (share * remaining).round().long() + floor
        assert capacity.tolist() == [[61, 38], [20, 9]]
        entries = torch.rand(1, 2, 160, 2, generator=torch.Generator().manual_seed(0))
        for layer in range(2):
            count = capacity[layer] + window
            keep = torch.full((1, 2, int(count.max())), -1)
            for head in range(2):  # the first `capacity` entries and the last 32
                best = torch.arange(int(capacity[layer, head]))
                keep[0, head, : count[head]] = torch.cat([best, torch.arange(128, 160)])
            kept = apply_kv(KVReduction(keep, count=count.view(1, 2)), entries)
            for head in range(2):
                assert torch.equal(kept[0, head, : count[head]], entries[0, head, keep[0, head, : count[head]]])
                assert (kept[0, head, count[head] :] == 0).all()
        assert int(capacity.sum()) + 4 * window == 4 * 64


class TestEVS:
    """One ranking over the whole video, the first frame always in: frames end up with different numbers of tokens."""

    @dataclass(frozen=True)
    class Toy(Selector):
        name, modality = "toy_evs", "video"

        def reachable(self, grid):
            return range(grid[1] * grid[2], grid[0] * grid[1] * grid[2] + 1)

        def score(self, tokens):
            t, h, w = tokens.grid
            frames = tokens.x.float().view(-1, t, h * w, tokens.x.shape[-1])
            change = 1 - cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1)
            return torch.cat([torch.full_like(change[:, :1], 255), change], 1).flatten(1)

    # two tokens in each of three frames; changes 0, .2929 and then 1, 0
    VIDEO = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 1], [0, 1], [1, 1]]])

    @pytest.mark.parametrize(
        ("count", "kept"), [(6, [0, 1, 2, 3, 4, 5]), (4, [0, 1, 3, 4]), (3, [0, 1, 4]), (2, [0, 1])]
    )
    def test_kept_tokens_and_frames(self, count, kept, tiny):
        tokens = tiny(n=6, grid=(3, 1, 2), x=self.VIDEO)
        anchor = self.Toy().reduce(tokens, count).anchor
        assert anchor.tolist() == [kept]
        per_frame = torch.bincount(apply_position(Reduction(anchor), tokens.position)[0] // 2, minlength=3)
        assert int(per_frame[0]) == 2 and int(per_frame.sum()) == count

    def test_less_than_a_frame_cannot_be_asked_for(self):
        assert list(self.Toy().reachable((3, 1, 2))) == [2, 3, 4, 5, 6]


class TestMovieChat:
    """Windows of a long stream: the two most alike neighbours merge until the memory fits."""

    @dataclass(frozen=True)
    class Toy(Streamer):
        name, modality = "toy_moviechat", "video"

        def start(self, grid, count):
            return {"frames": [], "first": [], "room": count // (grid[1] * grid[2])}

        def step(self, state, window):
            t, h, w = window.grid
            frames = state["frames"] + list(window.x.view(t, h * w, -1))
            first = state["first"] + list(window.position.view(t, h * w))
            while len(frames) > state["room"]:
                alike = torch.stack(
                    [cosine_similarity(a, b, dim=-1).mean() for a, b in zip(frames, frames[1:], strict=False)]
                )
                at = int(alike.argmax())
                frames[at : at + 2] = [(frames[at] + frames[at + 1]) / 2]
                first[at : at + 2] = [first[at]]
            return {"frames": frames, "first": first, "room": state["room"]}

        def finish(self, state):
            return Resampled(torch.cat(state["frames"]).unsqueeze(0), torch.cat(state["first"]).unsqueeze(0))

    def stream(self, tiny, frames, count, window):
        toy = self.Toy()
        state = toy.start((0, 1, 1), count)
        for begin in range(0, len(frames), window):
            part = torch.tensor(frames[begin : begin + window]).unsqueeze(0)
            tokens = tiny(n=part.shape[1], grid=(part.shape[1], 1, 1), x=part)
            tokens = dataclasses.replace(tokens, position=tokens.position + begin)
            state = toy.step(state, tokens)
            assert toy.finish(state).x.shape[1] <= count
        return toy.finish(state)

    @pytest.mark.parametrize("window", [4, 2])
    def test_alike_neighbours_merge_in_order(self, tiny, window):
        memory = self.stream(tiny, [[1.0, 0], [1, 0], [0, 2], [0, 3]], count=2, window=window)
        assert memory.x.tolist() == [[[1, 0], [0, 2.5]]] and memory.position.tolist() == [[0, 2]]

    def test_direction_decides_and_not_length(self, tiny):
        memory = self.stream(tiny, [[1.0, 0], [1, 0], [2, 2]], count=2, window=3)
        assert memory.x.tolist() == [[[1, 0], [2, 2]]]

    def test_memory_is_bounded_however_long_the_stream(self, tiny):
        memory = self.stream(
            tiny, torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).tolist(), count=3, window=5
        )
        assert memory.x.shape == (1, 3, 2) and memory.position[0, 0] == 0
        assert (memory.position.diff() > 0).all()

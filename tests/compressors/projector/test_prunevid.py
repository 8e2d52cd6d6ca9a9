"""PruneVid before the decoder: scenes, still places, clusters."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from foveate.compressors.base import apply, apply_size, in_order
from foveate.compressors.dpc_knn import clustered
from foveate.compressors.projector.prunevid import most_scenes, scenes_of, stillness
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


def method(**options):
    return make("projector", "prunevid", **options)


def film(seed=0, t=16, n=20, dim=8, cuts=(10,), noise=0.05):
    """(1, T N, D) scenes in which the first half of the places stands still, but for noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(t, n, dim, generator=generator)
    for first, last in zip([0, *cuts], [*cuts, t], strict=True):
        still = torch.randn(n // 2, dim, generator=generator) + 2 * torch.randn(dim, generator=generator)
        x[first:last, : n // 2] = still + noise * x[first:last, : n // 2]
    return x.view(1, t * n, dim)


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("001022", [0, 0, 0, 0, 1, 1]),  # the second run of 0 is let go, and 1 is too short: the gap goes left
        ("0011", [0, 0, 1, 1]),
        ("0012222", [0, 0, 1, 1, 1, 1, 1]),  # to the longer run
        ("1222", [0, 0, 0, 0]),  # to the only one
        ("2221", [0, 0, 0, 0]),
        ("0123", [0, 0, 0, 0]),  # no run is held: one scene
        ("001100", [0, 0, 1, 1, 2, 2]),  # both longest runs of a cluster are held
        ("0012300", [0, 0, 0, 0, 0, 0, 0]),  # and become one scene where only a gap is between
        ("0", [0]),
    ],
)
def test_scenes_are_the_longest_runs_and_what_joins_them(label, wanted):
    assert scenes_of([int(name) for name in label]) == wanted
    assert max(wanted) + 1 <= most_scenes(len(label))


def test_frames_that_look_alike_are_one_scene():
    frame = torch.tensor([0.0] * 10 + [5.0] * 6).view(1, 16, 1)
    assert method().clusters_of(16) == 4
    assert method().scene_of(frame)[0].tolist() == [0] * 10 + [1] * 6
    assert method().scene_of(frame[:, :7])[0].tolist() == [0] * 7  # one cluster of seven frames


def test_a_place_that_hardly_changes_is_one_token_their_mean(tiny):
    x = torch.tensor([[[1.0, 0], [1, 0], [0.8, 0.6]]])  # pairs: 1, .8, .8, in the mean .8667
    tokens = tiny(n=3, grid=(3, 1, 1), x=x)
    mean, still = stillness(x.view(1, 3, 1, 2), torch.zeros(1, 3, dtype=torch.long), 1, 0.8)
    assert still.tolist() == [[[True]]] and torch.allclose(mean, x.mean(1).view(1, 1, 1, 2))
    reduction = method().reduce(tokens, 3)
    assert torch.allclose(apply(reduction, x), x.mean(1, keepdim=True))
    assert apply_size(reduction, tokens.size).tolist() == [[3]] and reduction.anchor.tolist() == [[0]]
    assert method(tau=0.866).reduce(tokens, 3).anchor.tolist() == [[0]]
    assert method(tau=0.867).reduce(tokens, 3).anchor.tolist() == [[0, 1, 2]]


def test_in_a_scene_of_one_frame_nothing_stands_still(tiny):
    x = torch.ones(1, 6, 4)
    assert not stillness(x.view(1, 1, 6, 4), torch.zeros(1, 1, dtype=torch.long), 1, 0.8)[1].any()
    assert method().reduce(tiny(n=6, grid=(1, 2, 3), x=x), 6).anchor.tolist() == [list(range(6))]


@pytest.mark.parametrize("cluster", [None, 1.0])
def test_without_still_places_and_merging_the_tokens_are_the_input(tiny, cluster):
    tokens = tiny(n=160, grid=(8, 4, 5))
    tokens.x[:, 80:] = tokens.x[:, :80]
    reduction = in_order(method(tau=1.01, cluster=cluster).reduce(tokens, 160))
    assert reduction.anchor.tolist() == [list(range(160))]
    assert torch.equal(apply(reduction, tokens.x), tokens.x)
    assert torch.equal(apply_size(reduction, tokens.size), tokens.size)


@pytest.mark.parametrize("cluster", [None, 0.5])
@pytest.mark.parametrize("count", [40, 64, 100, 150, 250, 320])
def test_every_token_is_in_one_slot(tiny, count, cluster):
    tokens = tiny(n=320, grid=(16, 4, 5), x=film())
    reduction = method(cluster=cluster).reduce(tokens, count)
    size = apply_size(reduction, tokens.size)
    assert reduction.anchor.shape[1] <= count and size.sum().item() == 320 and (size >= 1).all()


def test_the_count_is_met_down_from_where_nothing_merges_within_scenes(tiny):
    tokens = tiny(n=320, grid=(16, 4, 5), x=film())
    free = method().reduce(tokens, 320).anchor.shape[1]
    assert free == 2 * 10 + 16 * 10  # ten still places of two scenes, ten others of each frame
    for count in (1, 7, 18, 40, 179):
        assert method().reduce(tokens, count).anchor.shape[1] == count
    size = apply_size(method().reduce(tokens, 90), tokens.size)[0]  # half of each group
    assert size.sum() == 320 and (method().reduce(tokens, 90).anchor[0] // 20).bincount().tolist() == (
        [10] + [5] * 9 + [10] + [5] * 5
    )


def test_the_published_rule_leaves_groups_of_up_to_fourteen_alone(tiny):
    for n, left in ((14, 14), (15, 7), (20, 10), (144, 72)):
        tokens = tiny(
            n=16 * n, grid=(16, 1, n), x=torch.randn(1, 16 * n, 8, generator=torch.Generator().manual_seed(1))
        )
        reduction = method(cluster=0.5, tau=1.01).reduce(tokens, 16 * n)
        assert (reduction.anchor[0] // n).bincount().tolist() == [left] * 16
    assert method(cluster=0.01).merged(torch.tensor([0, 3, 30])).tolist() == [0, 3, 1]


def by_loops(x, t, n, tau, small):
    """(mean, size, anchor) of each slot with half of each larger group, group by group."""
    x, found = x.view(t, n, -1), []
    label = clustered(x.mean(1)[None], torch.ones(1, t, dtype=torch.bool), torch.tensor([t // 4]), 7)[1][0]
    scene = scenes_of(label.tolist())

    def add(points, places, frames, first):
        wanted = len(places) // 2 if len(places) > small else len(places)
        one = torch.ones(1, len(places), dtype=torch.bool)
        owner = clustered(points[None], one, torch.tensor([wanted]), 7)[1][0]
        for centre in owner.unique().tolist():
            members = [places[i] for i in (owner == centre).nonzero()[:, 0].tolist()]
            tokens = torch.stack([x[f, p] for f in frames for p in members])
            found.append((tokens.mean(0), len(tokens), first * n + places[centre]))

    for number in set(scene):
        frames = [f for f in range(t) if scene[f] == number]
        pairs = [(i, j) for i in frames for j in frames if i != j]
        mean = [sum(float(cosine_similarity(x[i, p], x[j, p], 0)) for i, j in pairs) / len(pairs) for p in range(n)]
        still, rest = ([p for p in range(n) if (mean[p] > tau) == yes] for yes in (True, False))
        if still:
            add(torch.stack([x[frames, p].mean(0) for p in still]), still, frames, frames[0])
        for f in frames:
            if rest:
                add(x[f, rest], rest, [f], f)
    return sorted(found, key=lambda slot: slot[2])


@pytest.mark.parametrize(("small", "tau"), [(14, 0.8), (4, 0.8), (4, 0.2), (0, -2.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_equals_its_loops(tiny, seed, small, tau):
    x = film(seed, cuts=(4, 11))
    tokens = tiny(n=320, grid=(16, 4, 5), x=x)
    reduction = in_order(method(cluster=0.5, small=small, tau=tau).reduce(tokens, 320))
    wanted = by_loops(x[0], 16, 20, tau, small)
    assert reduction.anchor[0].tolist() == [anchor for *_, anchor in wanted]
    assert apply_size(reduction, tokens.size)[0].tolist() == [size for _, size, _ in wanted]
    assert torch.allclose(apply(reduction, x)[0], torch.stack([mean for mean, *_ in wanted]), atol=1e-5)


def test_rows_may_leave_different_numbers(tiny):
    both = tiny(n=320, grid=(16, 4, 5), batch=2, x=torch.cat([film(), torch.ones(1, 320, 8)]))
    reduction = method().reduce(both, 200)
    assert reduction.count.tolist() == [180, 20]  # nothing moves in the second: one token for each place
    assert apply_size(reduction, both.size).sum(1).tolist() == [320, 320]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scenes": 0.0}, r"scenes 0.0 or cluster None is outside \(0, 1\]"),
        ({"cluster": 1.5}, r"scenes 0.25 or cluster 1.5 is outside \(0, 1\]"),
        ({"neighbours": 0}, "small 14 is below 0 or neighbours 0 below 1"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"prunevid: {message}"):
        method(**wrong)

import pytest
import torch

from foveate.compressors.base import apply, apply_size
from foveate.compressors.projector.seq_compression import centred_products, distances, farthest_first, moved
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

POINTS = torch.tensor([[[0.0, 0], [0, 1], [10, 0], [10, 1], [0, 0.5], [5, 9]]])


def error(x, cluster):
    """Sum of squared distances to the clusters' means, by loops."""
    groups = [x[0][cluster[0] == k] for k in cluster[0].unique()]
    return sum(float(((group - group.mean(0)) ** 2).sum()) for group in groups)


def test_three_clusters_of_six_points(tiny):
    tokens = tiny(n=6, grid=(1, 2, 3), x=POINTS)
    reduction = make("projector", "seq_compression").reduce(tokens, 3)
    assert reduction.anchor.tolist() == [[0, 2, 5]] and reduction.into.flatten().tolist() == [0, 0, 1, 1, 0, 2]
    assert torch.allclose(apply(reduction, tokens.x), torch.tensor([[[0, 0.5], [10, 0.5], [5, 9]]]))
    assert apply_size(reduction, tokens.size).tolist() == [[3, 2, 1]]


def test_centres_start_at_the_middle_and_then_far_from_each_other():
    products = centred_products(POINTS)
    unit = float(((POINTS - POINTS.mean(1, keepdim=True)) ** 2).sum(-1).mean())
    start = farthest_first(products, 3)
    assert start.tolist() == [[0, 0, 1, 1, 0, 2]]  # around tokens 1, 2 and 5
    from_seeds = ((POINTS[:, :, None] - POINTS[:, None, [1, 2, 5]]) ** 2).sum(-1)
    assert float(from_seeds.amin(-1).sum()) == 2.25
    assert float(distances(products, start, 3).amin(-1).sum()) * unit == pytest.approx(1.0, abs=1e-3)
    assert error(POINTS, start) == 1.0
    assert torch.equal(moved(products, start, 3), start)


def test_every_round_lowers_the_error(tiny):
    tokens = tiny(n=80, grid=(1, 8, 10), dim=3, seed=3)
    products = centred_products(tokens.x)
    cluster, errors = farthest_first(products, 9), []
    for _ in range(12):
        errors.append(error(tokens.x, cluster))
        cluster = moved(products, cluster, 9)
    assert all(after <= before + 1e-4 for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < errors[0] - 1 and cluster.unique().numel() == 9


def test_tokens_join_the_nearest_mean(tiny):
    tokens = tiny(n=40, grid=(1, 5, 8), dim=3)
    reduction = make("projector", "seq_compression", rounds=100).reduce(tokens, 6)
    means = apply(reduction, tokens.x)
    assert torch.equal(torch.cdist(tokens.x, means).argmin(-1), reduction.into.squeeze(-1))


def test_means_and_sizes_keep_the_sum(tiny):
    tokens = tiny(n=48, grid=(3, 4, 4), batch=2)
    reduction = make("projector", "seq_compression").reduce(tokens, 7)
    size = apply_size(reduction, tokens.size)
    total = (size.unsqueeze(-1) * apply(reduction, tokens.x)).sum(1)
    assert torch.allclose(total, tokens.x.sum(1), atol=1e-4) and size.sum(-1).tolist() == [48, 48]


def test_all_tokens_are_themselves_and_one_is_the_mean(tiny):
    tokens, method = tiny(n=12, grid=(1, 3, 4)), make("projector", "seq_compression")
    assert torch.equal(apply(method.reduce(tokens, 12), tokens.x), tokens.x)
    assert torch.allclose(apply(method.reduce(tokens, 1), tokens.x), tokens.x.mean(1, keepdim=True), atol=1e-6)


def test_clusters_stand_in_the_order_of_their_first_token(tiny):
    anchor = make("projector", "seq_compression").reduce(tiny(n=30, grid=(1, 5, 6)), 8).anchor[0]
    assert anchor[0] == 0 and (anchor.diff() > 0).all()


def test_twins_give_no_more_slots_than_there_are_distinct_tokens(tiny):
    tokens = tiny(n=12, grid=(1, 3, 4), x=torch.tensor([[0.0, 1], [3, 3], [5, 0]]).repeat(4, 1).unsqueeze(0))
    reduction = make("projector", "seq_compression").reduce(tokens, 7)
    assert reduction.anchor.tolist() == [[0, 1, 2]]
    assert torch.allclose(apply(reduction, tokens.x), tokens.x[:, :3])


def test_an_empty_cluster_takes_the_token_farthest_from_its_centre():
    x = torch.tensor([[[0.0], [1], [2], [10], [11], [16]]])
    cluster = torch.tensor([[0, 0, 0, 1, 1, 1]])  # of four, two are empty; the far ones are 16 and 10
    assert moved(centred_products(x), cluster, 4).tolist() == [[0, 0, 0, 3, 1, 2]]


def test_the_cosine_forgets_length(tiny):
    x = torch.tensor([[[1.0, 0], [9, 0], [0, 1], [0, 9]]])
    tokens = tiny(n=4, grid=(1, 2, 2), x=x)
    by_angle = make("projector", "seq_compression", metric="cosine").reduce(tokens, 2)
    assert apply(by_angle, x).tolist() == [[[5, 0], [0, 5]]]
    assert make("projector", "seq_compression").reduce(tokens, 3).into.flatten().tolist() == [0, 1, 0, 2]


def test_two_calls_agree_bit_for_bit(tiny):
    tokens, method = tiny(n=48, grid=(1, 6, 8)), make("projector", "seq_compression")
    first, second = (apply(method.reduce(tokens, 9), tokens.x) for _ in range(2))
    assert torch.equal(first, second)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="seq_compression: metric 'l1' is neither 'euclidean' nor 'cosine'"):
        make("projector", "seq_compression", metric="l1")
    with pytest.raises(ValueError, match="seq_compression: rounds -1 is below 0"):
        make("projector", "seq_compression", rounds=-1)

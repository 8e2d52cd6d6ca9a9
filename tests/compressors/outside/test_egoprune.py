import pytest
import torch

from foveate.compressors.outside.egoprune import budgets, sampled, varied
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast

H, W, D = 6, 9, 32


def world(width, seed=0):
    """Tokens (H, width, D) that are all different."""
    return torch.randn(H, width, D, generator=torch.Generator().manual_seed(seed))


def film(tiny, *frames, **options):
    """Tokens of frames (H, W, D)."""
    x = torch.cat([frame.reshape(-1, D) for frame in frames]).unsqueeze(0)
    return tiny(n=x.shape[1], grid=(len(frames), H, W), x=x, **options)


def kept(tokens, count, **options):
    """(T, H, W) bool: what one row keeps."""
    reduction = make("outside", "egoprune", **options).reduce(tokens, count)
    anchor = reduction.anchor[0][reduction.anchor[0] >= 0]
    return torch.zeros(tokens.n, dtype=torch.bool).index_fill(0, anchor, True).view(tokens.grid)


def test_a_second_frame_like_the_first_is_empty(tiny):
    scene = world(W)
    found = kept(film(tiny, scene, scene), 2 * H * W, overlap=None)
    assert found[0].all() and not found[1].any()


def test_of_a_shifted_frame_only_the_new_columns_survive(tiny):
    scene = world(W + 3)
    found = kept(film(tiny, scene[:, :W], scene[:, 3:]), 2 * H * W, overlap=None)
    assert found[0].all() and found[1, :, -3:].all() and not found[1, :, :-3].any()


def test_what_moves_before_a_still_camera_survives(tiny):
    scene = world(W)
    moved = scene.clone()
    moved[2:4, 3:5] = world(2, seed=1)[:2]
    found = kept(film(tiny, scene, moved), 2 * H * W, overlap=None)
    wanted = torch.zeros(H, W, dtype=torch.bool)
    wanted[2:4, 3:5] = True
    assert torch.equal(found[1], wanted)


def test_frames_that_overlap_much_are_no_keyframes_and_the_next_is_compared_with_the_last_one(tiny):
    scene = world(W + 5)
    views = [scene[:, at : at + W] for at in (0, 1, 5)]  # intersection over union 8/10, then 4/14 with frame 0
    found = kept(film(tiny, *views), 3 * H * W)
    assert found[0].all() and not found[1].any()
    assert found[2, :, -5:].all() and not found[2, :, :-5].any()


def test_a_gap_makes_a_keyframe_however_alike(tiny):
    scene = world(W)
    fresh = scene.clone()
    fresh[0, 0] = world(1, seed=2)[0, 0]
    frames = [scene, fresh, fresh]
    assert kept(film(tiny, *frames), 3 * H * W).flatten(1).sum(1).tolist() == [H * W, 0, 0]
    assert kept(film(tiny, *frames), 3 * H * W, gap=2).flatten(1).sum(1).tolist() == [H * W, 0, 1]


def test_without_a_map_a_frame_is_compared_place_by_place_or_kept_whole(tiny):
    flat = torch.ones(H, W, D)
    assert kept(film(tiny, flat, flat), 2 * H * W).flatten(1).sum(1).tolist() == [H * W, 0]
    assert kept(film(tiny, world(W), world(W, seed=5)), 2 * H * W).all()


def test_the_count_is_met_where_enough_survive_and_rows_may_differ(tiny):
    scene, other = world(W), world(W, seed=5)
    x = torch.stack([torch.cat([scene, scene]), torch.cat([scene, other])]).view(2, -1, D)
    tokens = tiny(n=2 * H * W, grid=(2, H, W), x=x, batch=2)
    reduction = make("outside", "egoprune").reduce(tokens, 80)
    assert reduction.count.tolist() == [54, 80]
    assert make("outside", "egoprune").reduce(tokens, 20).anchor.shape == (2, 20)


def test_relevance_and_variety_are_traded_pick_by_pick():
    relevance = torch.tensor([[[0.9, 0.85, 0.3, 0.5]]])
    likeness = torch.tensor([[1, 0.95, 0.1, 0.2], [0.95, 1, 0, 0], [0.1, 0, 1, 0.3], [0.2, 0, 0.3, 1]]).view(1, 1, 4, 4)
    alive = torch.ones(1, 1, 4, dtype=torch.bool)
    picks = [varied(relevance, likeness, alive, torch.tensor([[k]]), 0.5)[0, 0] for k in (1, 2, 3)]
    assert [pick.nonzero().flatten().tolist() for pick in picks] == [[0], [0, 3], [0, 2, 3]]
    alive[..., 0] = False
    assert varied(relevance, likeness, alive, torch.tensor([[1]]), 0.5)[0, 0].tolist() == [False, True, False, False]


def test_a_frame_whose_places_suffice_keeps_all_survivors_and_the_next_one_picks():
    generator = torch.Generator().manual_seed(2)
    relevance, likeness = torch.rand(1, 2, 6, generator=generator), torch.rand(1, 2, 6, 6, generator=generator)
    alive = torch.tensor([[[1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 1, 1]]], dtype=torch.bool)
    found = varied(relevance, likeness, alive, torch.tensor([[4, 3]]), 0.5)
    assert torch.equal(found[:, 0], alive[:, 0]) and int(found[:, 1].sum()) == 3
    alone = varied(relevance[:, 1:], likeness[:, 1:], alive[:, 1:], torch.tensor([[3]]), 0.5)
    assert torch.equal(found[:, 1:], alone)
    assert torch.equal(varied(relevance, likeness, alive, torch.tensor([[4, 5]]), 0.5), alive)


def test_of_a_single_picture_relevance_alone_picks_where_variety_does_not_count(tiny):
    similar = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7]])
    tokens = tiny(n=6, grid=(1, 2, 3), text_similarity=similar)
    assert make("outside", "egoprune", trade=1.0).reduce(tokens, 3).anchor.tolist() == [[1, 3, 5]]
    assert make("outside", "egoprune", trade=1.0, sign=-1).reduce(tokens, 3).anchor.tolist() == [[0, 2, 4]]


def test_budgets_follow_the_survivors_and_frame_0_keeps_one():
    assert budgets(torch.tensor([[10, 5, 0, 5]]), 8).tolist() == [[4, 2, 0, 2]]
    assert budgets(torch.tensor([[1, 50, 49]]), 4).tolist() == [[1, 1, 2]]
    assert budgets(torch.tensor([[3, 1, 0]]), 9).tolist() == [[3, 1, 0]]


def test_tokens_are_sampled_between_patches_and_at_the_border():
    x = torch.tensor([[[0.0], [1], [2], [3], [4], [5]]])  # 2 x 3
    at = torch.tensor([[[0.5, 0.5], [1.25, 0.0], [-0.4, 1.3], [2.5, 0.5]]]).double()
    assert sampled(x, at, 2, 3).flatten().tolist() == [2.0, 1.25, 3.0, 3.5]


def test_a_thinned_grid_and_wrong_hyperparameters_are_refused(tiny):
    with pytest.raises(ValueError, match="egoprune: 12 tokens are not a whole 1 x 3 x 5 grid"):
        make("outside", "egoprune").reduce(tiny(n=12, grid=(1, 3, 5)), 3)
    for wrong in ({"gap": 0}, {"trade": 2.0}, {"sign": 0}):
        with pytest.raises(ValueError, match="egoprune: gap"):
            make("outside", "egoprune", **wrong)


@pytest.mark.parametrize(("frames", "wanted"), [(1, 144 * 144), (4, 7 * 36 * 36)])
def test_flops_are_cosines_within_frames_and_with_one_keyframe_each(frames, wanted):
    found = make("outside", "egoprune").flops_on((frames, 1, 144 // frames), 144, 20, 10)
    assert found == 2 * 10 * wanted

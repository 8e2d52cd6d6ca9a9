import pytest
import torch

from foveate.compressors.base import apply_kv
from foveate.compressors.matching import cosine
from foveate.compressors.registry import make

pytestmark = pytest.mark.fast


@pytest.fixture
def example(tiny_cache):
    """Text 0, 1, 6, 7 and image 2 .. 5; entry 4 has received most attention, all image keys look like entry 4's."""
    keys = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 2], [0.2, 1], [1, 0.2], [1, -0.1]])
    attention = torch.tensor([9.0, 9, 0.3, 0.2, 0.5, 0.4, 0.1, 0.1])
    return tiny_cache(
        visual=4, text=(2, 2), heads=1, dim=2, keys=keys.view(1, 1, 8, 2), accumulated_attention=attention.view(1, 1, 8)
    )


def test_keeps_text_and_the_most_attended_image_entry(example):
    assert make("decode", "look_m", recent=0.25).reduce(example, 1).keep.tolist() == [[[0, 1, 4, 6, 7]]]
    assert make("decode", "look_m").reduce(example, 3).keep.tolist() == [[[0, 1, 2, 4, 5, 6, 7]]]


@pytest.mark.parametrize(("important", "kept"), [(3, [0, 1, 4, 6, 7]), (1, [0, 1, 6, 7])])
def test_text_stays_even_where_it_is_more_than_the_published_budget(example, important, kept):
    """H most important and W = 2 recent of all entries: H less the text before them is what is left for the image."""
    count = max(0, important - 2)
    assert make("decode", "look_m", recent=0.25).plan(example, count).keep.tolist() == [[kept]]


@pytest.mark.parametrize(
    ("merge", "kept", "member"), [("pivot", 0.75, 0.25), ("average", 0.5, 0.5), ("none", 1.0, 0.0)]
)
def test_one_evicted_entry_joins_its_like(example, merge, kept, member):
    reduction = make("decode", "look_m", merge=merge).reduce(example, 3)  # entry 3 goes; its nearest is 5
    nearest = int(cosine(example.keys[0, :, 3:4], example.keys[0])[0, 0, [0, 1, 2, 4, 5, 6, 7]].argmax())
    assert nearest == 4  # fifth of those that stay: entry 5
    for entries in (example.keys, example.values):
        wanted = entries[0, 0, [0, 1, 2, 4, 5, 6, 7]].clone()
        wanted[4] = kept * entries[0, 0, 5] + member * entries[0, 0, 3]
        assert torch.allclose(apply_kv(reduction, entries)[0, 0], wanted, atol=1e-6)


def test_weighted_members_count_their_cosine_if_above_the_mean(example):
    reduction = make("decode", "look_m", merge="weighted").reduce(example, 1)
    likeness = cosine(example.keys[0, 0, [2, 3, 5]], example.keys[0, 0, [4]])[:, 0]  # all three are nearest to 4
    assert likeness.tolist() == pytest.approx([1, 0.99504, 0.98058], abs=1e-5)
    joins = [2, 3]  # the mean is .99187
    assert (reduction.into[0, 0] >= 0).tolist() == [True, True, True, True, True, False, True, True]
    wanted = (example.keys[0, 0, 4] + (likeness[:2].unsqueeze(-1) * example.keys[0, 0, joins]).sum(0)) / 3
    assert torch.allclose(apply_kv(reduction, example.keys)[0, 0, 2], wanted, atol=1e-5)


def test_no_eviction_leaves_the_cache_as_it_is(example):
    reduction = make("decode", "look_m").reduce(example, 4)
    assert torch.equal(apply_kv(reduction, example.keys), example.keys)


@pytest.mark.parametrize(("count", "kept"), [(1, [6]), (2, [6, 7]), (3, [2, 6, 7])])
def test_the_most_recent_entries_come_before_attention_as_far_as_the_count_allows(tiny_cache, count, kept):
    attention = torch.tensor([0.0, 0, 9, 8, 7, 6, 2, 1]).view(1, 1, 8)
    cache = tiny_cache(visual=6, text=(2, 0), heads=1, accumulated_attention=attention)
    keep = make("decode", "look_m", recent=0.25).reduce(cache, count).keep
    assert keep.tolist() == [[[0, 1, *kept]]]


def test_heads_choose_for_themselves(tiny_cache):
    attention = torch.tensor([[0, 5.0, 1, 1, 0], [0, 1, 1, 5, 0]]).view(1, 2, 5)
    cache = tiny_cache(visual=3, text=(1, 1), accumulated_attention=attention)
    assert make("decode", "look_m").reduce(cache, 1).keep.tolist() == [[[0, 1, 4], [0, 3, 4]]]


@pytest.mark.parametrize("merge", ["pivot", "average", "weighted"])
def test_equals_merging_by_loops(tiny_cache, merge):
    cache = tiny_cache(visual=20, text=(2, 3), batch=2, heads=2)
    reduction = make("decode", "look_m", merge=merge).reduce(cache, 6)
    got = apply_kv(reduction, cache.values)
    for b in range(2):
        for k in range(2):
            keep = reduction.keep[b, k].tolist()
            gone = [s for s in range(25) if s not in keep]
            likeness = cosine(cache.keys[b, k, gone], cache.keys[b, k, keep])
            mean = likeness.amax(1).mean()
            for slot, entry in enumerate(keep):
                own = cache.values[b, k, entry]
                total, members = own.clone(), 0
                for row, source in zip(likeness, gone, strict=True):
                    if int(row.argmax()) != slot or (merge == "weighted" and row.max() <= mean):
                        continue
                    value = cache.values[b, k, source]
                    total += {"pivot": (value + own) / 2, "average": value, "weighted": row.max() * value}[merge]
                    members += 1
                assert torch.allclose(got[b, k, slot], total / (1 + members), atol=1e-5)


def test_wrong_hyperparameters_are_named():
    with pytest.raises(ValueError, match="merge 'sum' is not one of pivot, average, weighted, none"):
        make("decode", "look_m", merge="sum")
    with pytest.raises(ValueError, match=r"recent 1.5 is outside \[0, 1\]"):
        make("decode", "look_m", recent=1.5)

"""The towers, opened: block by block they give what HF's give in one call."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveate.models.families.qwen2_5_vl import Qwen25Tower
from foveate.models.families.qwen3_vl import Qwen3Tower
from foveate.models.visual import Riders

pytestmark = pytest.mark.fast
TOWERS = {"qwen2_5_vl": Qwen25Tower, "qwen3_vl": Qwen3Tower}
GRIDS = [(1, 1, 1), (1, 2, 3), (1, 4, 4), (1, 5, 6), (1, 7, 3)]


def pixels(grid, seed=0, views=1):
    return torch.randn(views, 3, 8 * grid[1], 8 * grid[2], generator=torch.Generator().manual_seed(seed))


def patches(view):
    """HF's layout, written with loops."""
    (_, height, width), rows = view.shape, []
    for row in range(0, height, 8):
        for column in range(0, width, 8):
            for y in (0, 4):
                for x in (0, 4):
                    patch = view[:, row + y : row + y + 4, column + x : column + x + 4]
                    rows.append(patch[:, None].expand(3, 2, 4, 4).flatten())
    return torch.stack(rows)


def riders(grid, views):
    n = grid[1] * grid[2]
    index = torch.arange(n).expand(views, n)
    names = dict.fromkeys(Riders.__dataclass_fields__, index)
    return Riders(**names | {"size": torch.ones(views, n), "grid": grid, "whole": True, "renumber": False})


def run(tower, x, grid):
    group = tower.start(list(range(x.shape[0])), tower.embed(x, grid), riders(grid, x.shape[0]))
    (group,) = tower.run(group, None, [], None)
    return group


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_units_and_levels_are_what_the_model_gives(kind, original, grid):
    visual = original(kind).model.visual
    tower = TOWERS[kind](visual)
    x = torch.cat([pixels(grid, seed) for seed in range(2)])
    group = run(tower, x, grid)
    thw = torch.tensor([[1, 2 * grid[1], 2 * grid[2]]] * 2)
    wanted = visual(torch.cat([patches(view) for view in x]), grid_thw=thw)
    found = tower.project(tower.tokens(group.x, grid))
    assert torch.allclose(found.flatten(0, 1), wanted.pooler_output, atol=1e-5)
    if kind == "qwen3_vl":
        extra = tower.project_extra(tower.extra(group))
        assert extra.shape == (2, grid[1] * grid[2], 2, 32)
        for level, want in enumerate(wanted.deepstack_features):
            assert torch.allclose(extra[:, :, level].flatten(0, 1), want, atol=1e-5)
    else:
        assert tower.extra(group) is None


@torch.no_grad()
def test_views_of_other_sizes_in_the_same_call_change_nothing(kind, original):
    visual = original(kind).model.visual
    views = [pixels(grid, 3)[0] for grid in GRIDS]
    thw = torch.tensor([[1, 2 * h, 2 * w] for _, h, w in GRIDS])
    wanted = visual(torch.cat([patches(v) for v in views]), grid_thw=thw).pooler_output
    tower = TOWERS[kind](visual)
    found = [tower.project(tower.tokens(run(tower, v[None], g).x, g))[0] for v, g in zip(views, GRIDS, strict=True)]
    assert torch.allclose(torch.cat(found), wanted, atol=1e-5)


@torch.no_grad()
def test_eager_attention_gives_the_same(kind, folders):
    visual = AutoModelForImageTextToText.from_pretrained(folders(kind), attn_implementation="eager").model.visual
    tower, grid = TOWERS[kind](visual), (1, 3, 5)
    fused = run(tower, pixels(grid), grid).x
    assert visual.config._attn_implementation == "eager"
    visual.set_attn_implementation("sdpa")
    assert torch.allclose(run(tower, pixels(grid), grid).x, fused, atol=1e-5)


@torch.no_grad()
def test_queries_and_keys_from_a_blocks_input_are_those_of_the_block(kind, original):
    tower, grid = TOWERS[kind](original(kind).model.visual), (1, 3, 5)
    x = tower.embed(pixels(grid, views=2), grid)
    for layer in range(tower.depth):
        out, q, k = tower.attend(layer, x, None, grid)
        again = tower.queries_keys(layer, x, 7, grid)
        assert torch.allclose(again[0], q[:, :, :7], atol=1e-6)
        assert torch.allclose(again[1], k, atol=1e-6)
        assert tower.queries_keys(layer, x, 0, grid)[0] is None
        x = tower.mlp(layer, out)


def test_windows_are_squares_cut_off_at_the_border(original):
    tower = Qwen25Tower(original("qwen2_5_vl").model.visual)  # 2 x 2 tokens a window
    grid = (1, 3, 5)
    assert tower.windows(1, grid) is None
    window = tower.windows(0, grid).reshape(15, 4)
    assert (window == window[:, :1]).all()
    assert window[:, 0].reshape(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    members = tower.geometry(grid, torch.device("cpu")).members
    assert [tuple(m.shape) for m in members] == [(1, 4), (3, 8), (2, 16)]


@torch.no_grad()
def test_what_happens_in_another_window_is_not_seen(original):
    tower, grid = Qwen25Tower(original("qwen2_5_vl").model.visual), (1, 4, 4)
    x = tower.embed(pixels(grid), grid)
    other = x.clone()
    far = (tower.windows(0, grid) == 3).nonzero()[:, 0]
    other[:, far] += 1.0
    kept = tower.windows(0, grid) != 3
    windowed = [tower.attend(0, each, None, grid)[0][:, kept] for each in (x, other)]
    whole = [tower.attend(1, each, None, grid)[0][:, kept] for each in (x, other)]
    assert torch.equal(*windowed)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_signals_of_a_unit_are_those_of_its_patches(original):
    tower, grid = Qwen3Tower(original("qwen3_vl").model.visual), (1, 1, 2)
    attention = torch.arange(8.0).reshape(1, 1, 8)
    assert tower.folded("cls_attention", attention, grid).tolist() == [[[6.0, 22.0]]]
    assert tower.folded("received_attention", attention[0], grid).tolist() == [[6.0, 22.0]]
    assert tower.folded("keys", attention.reshape(1, 8, 1), grid).tolist() == [[[1.5], [5.5]]]


def test_learned_positions_are_the_table_itself_at_its_own_size(original):
    tower = Qwen3Tower(original("qwen3_vl").model.visual)  # a table of 5 x 5; patches come in even numbers
    table = tower.visual.pos_embed.weight.reshape(5, 5, -1)
    corners = tower.positions((1, 3, 3))
    assert torch.allclose(corners[0], table[0, 0])
    assert torch.allclose(corners[-1], table[4, 4])
    assert torch.allclose(corners[5 + 4], table[0, 4])  # the unit at the top right, its second patch
    middle = tower.positions((1, 1, 1))
    assert torch.allclose(middle, table[[0, 0, 4, 4], [0, 4, 0, 4]])


def test_only_so_many_grids_are_remembered(kind, original, monkeypatch):
    monkeypatch.setattr("foveate.models.families.qwen_tower.REMEMBERED", 3)
    tower, cpu = TOWERS[kind](original(kind).model.visual), torch.device("cpu")
    first = tower.geometry((1, 1, 2), cpu)
    for width in range(3, 12):
        tower.geometry((1, 1, width), cpu)
        assert len(tower._known) <= 3
    assert torch.equal(tower.geometry((1, 1, 2), cpu).cos, first.cos)

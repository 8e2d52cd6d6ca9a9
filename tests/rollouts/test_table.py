import dataclasses

import numpy as np
import pytest

from foveate.plans import BLIND
from foveate.rollouts.table import Table

pytestmark = pytest.mark.fast


def test_a_saved_table_comes_back_bit_for_bit(toy, tmp_path):
    toy.save(tmp_path / "a" / "t.parquet")
    back = Table.load(tmp_path / "a" / "t.parquet")
    assert back.same_as(toy)
    assert back.questions[3] == "what is 3?" and back.correct.dtype == bool and back.meta["host"] == "toy"


def test_a_table_without_label_free_and_with_an_empty_group_comes_back(toy, tmp_path):
    groups = {**toy.groups, "layer1": np.zeros((toy.n, 0), np.float32)}
    bare = dataclasses.replace(
        toy, label_free=None, reach=None, groups=groups, group_names={**toy.group_names, "layer1": ()}
    )
    bare.save(tmp_path / "t.parquet")
    assert Table.load(tmp_path / "t.parquet").same_as(bare)
    with pytest.raises(ValueError, match="without the label_free"):
        bare.quality("label_free")


def test_shares_are_relative_to_the_uncompressed_plan(toy):
    assert np.allclose(toy.share, [[1.0, 0.1, 0.3, 0.4, 0.6]] * 8)
    assert toy.full[2] == 1_002_000 and toy.column[BLIND] == 1


def test_quality_mixes_exact_match_and_probability(toy):
    assert toy.quality("graded", 0.5)[0].tolist() == [0.875, 0.875, 0.875, 0.125, 0.125]
    assert toy.quality()[1].tolist() == [1, 0, 0, 1, 0]
    with pytest.raises(ValueError, match=r"b = 1.5 is outside \[0, 1\]"):
        toy.quality("graded", 1.5)
    with pytest.raises(ValueError, match="unknown mode 'exakt'"):
        toy.quality("exakt")


def test_a_subset_by_mask_and_by_index_agree(toy):
    by_mask = toy.subset(toy.regimes == "odd")
    assert by_mask.same_as(toy.subset([1, 3, 5, 7]))
    assert by_mask.ids.tolist() == ["toy/test/1#0", "toy/test/3#0", "toy/test/5#0", "toy/test/7#0"]
    assert by_mask.groups["pixels"][:, 0].tolist() == [1, 0, 2, 1]


def test_folds_hold_families_together_and_do_not_depend_on_the_rows_present(toy):
    folds = toy.folds(3)
    assert (folds[::2] == folds[1::2]).all() and set(folds) <= {0, 1, 2} and len(set(folds)) > 1
    assert (toy.subset([1, 6]).folds(3) == folds[[1, 6]]).all()
    assert toy.family_index().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_concat_puts_the_parts_back_together(toy):
    assert Table.concat([toy.subset([0, 1, 2]), toy.subset(range(3, 8))]).same_as(toy)
    with pytest.raises(ValueError, match="differ in plans"):
        Table.concat([toy, dataclasses.replace(toy, label_free=None)])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"plans": (BLIND,)}, "must start with the uncompressed"),
        ({"prob": np.zeros((8, 4))}, r"prob has shape \(8, 4\), wanted \(8, 5\)"),
        ({"ids": ["x"] * 8}, "stands there twice"),
        ({"cost": np.full((8, 5), np.nan)}, "cost must be a positive number"),
        ({"group_names": {}}, "groups .* and group_names .* differ"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(toy, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(toy, **change)


def test_files_that_are_no_table_are_refused_with_their_name(toy, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(FileNotFoundError, match="no replay table at .*none.parquet"):
        Table.load(tmp_path / "none.parquet")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text: not a readable Parquet file"):
        Table.load(tmp_path / "text")
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(ValueError, match="other: a Parquet file, but not a replay table"):
        Table.load(tmp_path / "other")
    toy.save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut: not a readable Parquet file"):
        Table.load(tmp_path / "cut")

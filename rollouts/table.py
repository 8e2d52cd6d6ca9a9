"""The replay table: what every plan would have given on every input. Parquet on disk, no pickle.

An *input* is one (sample, turn): one picture and one question. The table is what hulls, oracles, rivals and the fast
training environment read, so one filling of it serves them all.

File: one row per input. Scalar columns `id`, `regime`, `family`, `template`, `split`, `question`; fixed-size list
columns of length P (plans) `correct`, `prob`, `cost`, `tokens`, `kv` and, where recorded, `label_free` and `reach`
(length 6); list columns `group.<name>`. Everything else is JSON in the schema's metadata under the key `foveate`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foveate.envs.quality import check_mode, graded
from foveate.plans.plan import STAGES, UNCOMPRESSED, Plan

VERSION = 1
_KEY = b"foveate"
_TEXTS = {
    "ids": "id",
    "regimes": "regime",
    "families": "family",
    "templates": "template",
    "splits": "split",
    "questions": "question",
}
_NUMBERS = {
    "correct": bool,
    "prob": np.float32,
    "cost": np.float64,
    "tokens": np.float32,
    "kv": np.float64,
    "label_free": np.float32,
    "reach": np.float64,
}
_OPTIONAL = ("label_free", "reach")


@dataclass(frozen=True, eq=False)
class Table:
    """Input x plan. N inputs, P plans.

    Attributes:
        ids: (N,) str, "scenes/test/12#0": sample and number of the turn. Unique.
        regimes, families, templates, splits: (N,) str. The family is the unit of folds and bootstraps.
        questions: (N,) object array of str.
        plans: P plans, the uncompressed one first, each once.
        correct: (N, P) bool, whether greedy decoding gives an accepted answer.
        prob: (N, P) float32, probability of the best accepted answer.
        cost: (N, P) float64 FLOPs of the whole pass up to the first answer token: compressors and signals included,
            policy features and controller not.
        tokens: (N, P) float32, mean over decoder layers of visual tokens.
        kv: (N, P) float64, bytes of the KV cache behind the prompt, after a decode compressor.
        groups: name -> (N, d) float32 policy features, recorded on the uncompressed path: "pixels", "question",
            "block1", "encoder", "layer1".
        group_names: name -> the d names of its features.
        group_cost: name -> FLOPs of computing it for one input, 0 where it is not in here.
        meta: plain data: host, portfolio, seed, versions, tasks.
        label_free: (N, P) float32 min(p_plan(y0), p_full(y0)) with y0 the uncompressed model's own answer; None where
            not recorded.
        reach: (N, 6) float64 FLOPs spent on the uncompressed path when the decision at each stage is due, features left
            out; None where not recorded.
    Raises:
        ValueError: the parts do not fit each other; the message names the first that does not.
    """

    ids: np.ndarray
    regimes: np.ndarray
    families: np.ndarray
    templates: np.ndarray
    splits: np.ndarray
    questions: np.ndarray
    plans: tuple[Plan, ...]
    correct: np.ndarray
    prob: np.ndarray
    cost: np.ndarray
    tokens: np.ndarray
    kv: np.ndarray
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    group_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    group_cost: dict[str, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    label_free: np.ndarray | None = None
    reach: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            kind = object if name == "questions" else str
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        for name, kind in _NUMBERS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        object.__setattr__(self, "plans", tuple(self.plans))
        object.__setattr__(self, "groups", {k: np.asarray(v, np.float32) for k, v in self.groups.items()})
        object.__setattr__(self, "group_names", {k: tuple(v) for k, v in self.group_names.items()})
        self._check()

    def _check(self) -> None:
        if self.plans[:1] != (UNCOMPRESSED,) or len(set(self.plans)) != len(self.plans):
            raise ValueError("table: plans must start with the uncompressed one and hold each plan once")
        for name in _TEXTS:
            _fits(name, getattr(self, name), (self.n,))
        for name in _NUMBERS:
            if getattr(self, name) is not None or name not in _OPTIONAL:
                _fits(name, getattr(self, name), (self.n, len(STAGES) if name == "reach" else self.p))
        if set(self.groups) != set(self.group_names):
            raise ValueError(f"table: groups {sorted(self.groups)} and group_names {sorted(self.group_names)} differ")
        for name, values in self.groups.items():
            _fits(f"groups[{name!r}]", values, (self.n, len(self.group_names[name])))
        if len(set(self.ids.tolist())) != self.n:
            raise ValueError("table: an input id stands there twice")
        if not (np.isfinite(self.cost).all() and (self.cost > 0).all()):
            raise ValueError("table: cost must be a positive number of FLOPs everywhere")

    @property
    def n(self) -> int:
        """Number of inputs."""
        return len(self.ids)

    @property
    def p(self) -> int:
        """Number of plans."""
        return len(self.plans)

    @property
    def full(self) -> np.ndarray:
        """(N,) float64 FLOPs of the uncompressed plan: what cost shares are shares of."""
        return self.cost[:, 0]

    @cached_property
    def share(self) -> np.ndarray:
        """(N, P) float64 cost / full."""
        return self.cost / self.full[:, None]

    @cached_property
    def column(self) -> dict[Plan, int]:
        """Plan -> its column."""
        return {plan: index for index, plan in enumerate(self.plans)}

    def quality(self, mode: str = "exact", b: float = 0.0) -> np.ndarray:
        """(N, P) float32 quality in [0, 1].

        Args:
            mode: "exact" (an accepted answer), "graded" ((1 - b) exact + b probability) or "label_free".
            b: share of the graded part, in [0, 1].
        Raises:
            ValueError: unknown mode, b outside its range, or no label-free column.
        """
        check_mode(mode, b)
        if mode != "label_free":
            return graded(self.correct.astype(np.float32), self.prob, b if mode == "graded" else 0.0).astype(np.float32)
        if self.label_free is None:
            raise ValueError("quality: this table was filled without the label_free column")
        return self.label_free

    def subset(self, rows: np.ndarray | Sequence[int]) -> Table:
        """Some inputs: a boolean mask (N,) or indices, in the order given."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.intp)
        cut = {name: getattr(self, name)[rows] for name in (*_TEXTS, *_NUMBERS) if getattr(self, name) is not None}
        return replace(self, **cut, groups={name: values[rows] for name, values in self.groups.items()})

    def folds(self, k: int, seed: int = 0) -> np.ndarray:
        """(N,) int64 fold 0..k-1 of each input: a function of (family, seed) alone, so a subset keeps its folds.

        Raises:
            ValueError: k below 2.
        """
        if k < 2:
            raise ValueError(f"folds: k = {k} is below 2")
        fold = {family: _digest(f"{seed}:{family}") % k for family in set(self.families.tolist())}
        return np.array([fold[family] for family in self.families.tolist()], dtype=np.int64)

    def family_index(self) -> np.ndarray:
        """(N,) int64, inputs of one family share a number: the units of a paired bootstrap."""
        return np.unique(self.families, return_inverse=True)[1].astype(np.int64)

    @classmethod
    def concat(cls, tables: Sequence[Table]) -> Table:
        """Rows of all tables in order; the first one's meta. Group costs are means weighted by rows.

        Raises:
            ValueError: no table, or tables of different plans or features.
        """
        if not tables:
            raise ValueError("concat: no table given")
        first = tables[0]
        for other in tables[1:]:
            same_columns = all((getattr(other, c) is None) == (getattr(first, c) is None) for c in _OPTIONAL)
            if other.plans != first.plans or other.group_names != first.group_names or not same_columns:
                raise ValueError("concat: the tables differ in plans, features or columns")
        weights = np.array([max(t.n, 1e-9) for t in tables])
        cost = {
            k: float(np.average([t.group_cost.get(k, 0.0) for t in tables], weights=weights)) for k in first.group_cost
        }
        joined = {
            name: np.concatenate([getattr(t, name) for t in tables])
            for name in (*_TEXTS, *_NUMBERS)
            if getattr(first, name) is not None
        }
        groups = {name: np.concatenate([t.groups[name] for t in tables]) for name in first.groups}
        return replace(first, **joined, groups=groups, group_cost=cost)

    def save(self, path: str | Path) -> None:
        """Writes one Parquet file, whole or not at all."""
        import pyarrow as pa
        from pyarrow import parquet

        columns = {column: pa.array(getattr(self, name).tolist(), pa.string()) for name, column in _TEXTS.items()}
        for name in _NUMBERS:
            if getattr(self, name) is not None:
                columns[name] = _as_lists(getattr(self, name))
        columns |= {f"group.{name}": _as_lists(values) for name, values in self.groups.items() if values.shape[1]}
        about = {
            "version": VERSION,
            "plans": [plan.to_dict() for plan in self.plans],
            "group_names": {name: list(names) for name, names in self.group_names.items()},
            "group_cost": self.group_cost,
            "meta": self.meta,
        }
        arrow = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + f".{os.getpid()}.part")
        parquet.write_table(arrow, part, compression="zstd")
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | Path) -> Table:
        """The table of a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: not a Parquet file, not one of ours, another version, or damaged; the message names the file.
        """
        import pyarrow as pa
        from pyarrow import parquet

        if not Path(path).is_file():
            raise FileNotFoundError(f"no replay table at {path}")
        try:
            arrow = parquet.read_table(path)
            about = json.loads((arrow.schema.metadata or {})[_KEY])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
        except KeyError:
            raise ValueError(f"{path}: a Parquet file, but not a replay table") from None
        if about.get("version") != VERSION:
            raise ValueError(f"{path}: replay table version {about.get('version')!r}, this code reads {VERSION}")
        try:
            return cls(**_parts(arrow, about))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: damaged replay table: {error}") from None

    def same_as(self, other: Table) -> bool:
        """Whether every field is equal, bit for bit."""
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))


def _parts(arrow: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, from an Arrow table and its metadata."""
    parts: dict[str, Any] = {name: arrow.column(column).to_pylist() for name, column in _TEXTS.items()}
    columns = [name for name in _NUMBERS if name in arrow.column_names or name not in _OPTIONAL]
    lengths = {"reach": len(STAGES)}
    parts |= {name: _from_lists(arrow, name, lengths.get(name, len(about["plans"]))) for name in columns}
    names = about["group_names"]
    parts["groups"] = {name: _from_lists(arrow, f"group.{name}", len(names[name])) for name in names}
    parts["plans"] = tuple(Plan.from_dict(plan) for plan in about["plans"])
    return parts | {"group_names": names, "group_cost": about["group_cost"], "meta": about["meta"]}


def _as_lists(values: np.ndarray) -> Any:
    """An Arrow column of fixed-size lists from an (N, d) array."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _from_lists(arrow: Any, name: str, d: int) -> np.ndarray:
    """The inverse of `_as_lists`; a group without features has no column."""
    if d == 0:
        return np.zeros((arrow.num_rows, 0), np.float32)
    column = arrow.column(name).combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, d)


def _fits(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"table: {name} has shape {values.shape}, wanted {shape}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return a == b

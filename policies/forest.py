"""Rivals from scikit-learn: a random forest and nearest neighbours. Strong baselines, not exported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.neighbors import NearestNeighbors

from foveate.controller.observation import GROUPS
from foveate.policies.standard import Standard
from foveate.policies.views import vectors
from foveate.rollouts.table import Table


class Forest:
    """A random forest per stop, all plans at once: the mean of `correct` in the leaves.

    Args:
        train: the inputs to learn from.
        groups: feature groups that it may read.
        trees: number of trees.
        leaf: fewest inputs in a leaf.
        seed: of bootstrap and feature draws.
        name: for reports.

    Attributes:
        cost: (P,) mean cost share per plan on the training inputs.
        flops: 0; a forest only compares.
    """

    flops = 0

    def __init__(
        self,
        train: Table,
        *,
        groups: Sequence[str] = GROUPS,
        trees: int = 100,
        leaf: int = 5,
        seed: int = 0,
        name: str = "forest",
    ) -> None:
        self.name, self.cost = name, train.share.mean(axis=0)
        self._train, self._groups, self._options = train, tuple(groups), (trees, leaf, seed)
        self._forests: dict[tuple[str, ...], RandomForestRegressor] = {}

    def predict(self, table: Table, groups: Sequence[str]) -> np.ndarray:
        """(N, P) probability of a right answer with these groups seen; a stop's forest is grown when first asked."""
        groups = tuple(group for group in groups if group in self._groups)
        if groups not in self._forests:
            trees, leaf, seed = self._options
            options = {"min_samples_leaf": leaf, "max_features": 1 / 3, "random_state": seed, "n_jobs": 1}
            forest = RandomForestRegressor(trees, **options)
            self._forests[groups] = forest.fit(_features(self._train, groups), self._train.correct.astype(np.float32))
        return self._forests[groups].predict(_features(table, groups)).reshape(table.n, -1).astype(np.float32)


class Neighbours:
    """The mean of `correct` over the most similar training inputs, by standardised features.

    Args:
        train: the inputs to look among.
        k: how many.
        name: for reports.

    Attributes:
        cost: (P,) mean cost share per plan on the training inputs.
        flops: one distance to every training input over the features of the first stop: what a decision there costs.
    """

    def __init__(self, train: Table, *, k: int = 30, name: str = "nearest neighbours") -> None:
        self.name, self.cost = name, train.share.mean(axis=0)
        self._train, self._k, self._standard = train, min(k, train.n), Standard.fit(train, head=())
        self.flops = 3 * train.n * sum(train.groups[group].shape[1] for group in ("pixels", "question"))

    def predict(self, table: Table, groups: Sequence[str]) -> np.ndarray:
        """(N, P) probability of a right answer with these groups seen."""
        index = NearestNeighbors(n_neighbors=self._k).fit(self._standardised(self._train, groups))
        places = index.kneighbors(self._standardised(table, groups), return_distance=False)
        return self._train.correct[places].mean(axis=1, dtype=np.float32)

    def _standardised(self, table: Table, groups: Sequence[str]) -> np.ndarray:
        x = vectors(table, self._standard.layout, groups)
        return np.clip((x - self._standard.mean) / self._standard.scale, -self._standard.clip, self._standard.clip)


def _features(table: Table, groups: Sequence[str]) -> np.ndarray:
    parts = [table.groups[group] for group in groups if group in table.groups]
    return np.concatenate(parts, axis=1) if parts else np.zeros((table.n, 1), np.float32)

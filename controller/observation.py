"""The observation vector: what a policy sees at a stop, laid out once for training, serving and export.

    head:    stage one-hot (6) | log_lambda | has_budget | budget_left | spent | tokens_left | turns
    groups:  pixels | question | block1 | encoder | layer1, each as [seen, features ...], zeros before it is revealed

Head values: `log_lambda` = log10(lambda) / 2 with lambda limited to [1e-4, 100], so in [-2, 1]; `budget_left` and
`spent` are shares of the uncompressed pass's FLOPs, limited to [0, 2] (2 without a budget); `tokens_left` is the
share of visual tokens still there, in [0, 1]; `turns` = log2(number of questions) / 4, limited to 1. Pixels (in a
layout for videos too: their time features behind them, 0 for a picture) and question lie in [0, 1]; the token groups
(after the first encoder block, the encoder, the first decoder layers) carry the ranges that their host documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foveate.controller.features import FEATURES_VERSION, PIXEL_FEATURES, QUESTION_FEATURES
from foveate.controller.motion import TIME_FEATURES, as_wide
from foveate.plans.plan import STAGES

LAYOUT_VERSIONS = (1, 2)
"""Of a layout for pictures alone, and of one for videos too: it has `TIME_FEATURES` behind the pixel features."""

TOKEN_GROUPS: tuple[str, ...] = ("block1", "encoder", "layer1")
GROUPS: tuple[str, ...] = ("pixels", "question", *TOKEN_GROUPS)
HEAD: tuple[str, ...] = (
    *(f"stage_{stage}" for stage in STAGES),
    *("log_lambda", "has_budget", "budget_left", "spent", "tokens_left", "turns"),
)
_ONE_HOT = {stage: tuple(float(stage == other) for other in STAGES) for stage in STAGES}
_SEEN = np.ones(1, np.float32)
LAMBDA_LIMITS = (1e-4, 100.0)
MAX_SHARE = 2.0


class Unseen(ValueError):
    """A video, put to a layout for pictures alone: whoever was trained with that has never seen one."""


@dataclass(frozen=True)
class Progress:
    """How far an episode is.

    Attributes:
        spent: FLOPs so far / FLOPs of the uncompressed pass.
        tokens_left: visual tokens now / visual tokens of the uncompressed input, in [0, 1].
        budget: hard limit on the whole pass as a share of the uncompressed FLOPs; None = no limit.
        turns: number of questions of the episode, at least 1.
    """

    spent: float = 0.0
    tokens_left: float = 1.0
    budget: float | None = None
    turns: int = 1


@dataclass(frozen=True)
class Layout:
    """Names and places of the observation vector for one host; made with `Layout.of`.

    Attributes:
        features: one tuple of names per entry of `GROUPS`.
    """

    features: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, token_features: Mapping[str, Sequence[str]] | None = None, video: bool = False) -> Layout:
        """The layout for a host that reveals these token features.

        Args:
            token_features: names per token group ("block1", "encoder", "layer1"); a group left out is empty.
            video: videos are among what is shown.

        Raises:
            ValueError: an unknown group, or a name twice in one group.
        """
        token_features = token_features or {}
        if unknown := set(token_features) - set(TOKEN_GROUPS):
            raise ValueError(f"token_features: unknown group {min(unknown)!r}; known: {', '.join(TOKEN_GROUPS)}")
        tokens = (tuple(token_features.get(group, ())) for group in TOKEN_GROUPS)
        layout = cls((PIXEL_FEATURES + TIME_FEATURES * video, QUESTION_FEATURES, *tokens))
        for group, names in zip(GROUPS, layout.features, strict=True):
            if len(set(names)) != len(names):
                raise ValueError(f"token_features: group {group!r} names a feature twice: {', '.join(names)}")
        return layout

    @classmethod
    def of_recorded(cls, names: Mapping[str, Sequence[str]]) -> Layout:
        """The layout of features that were recorded under these names, by group.

        Raises:
            ValueError: this code computes others.
        """
        layout = cls.of(
            {group: names[group] for group in TOKEN_GROUPS if group in names},
            video=len(names.get("pixels", ())) > len(PIXEL_FEATURES),
        )
        for group, mine in zip(GROUPS, layout.features, strict=True):
            check_order(group, names.get(group, ()), mine)
        return layout

    @property
    def video(self) -> bool:
        """Whether it has a place for what is known of videos alone."""
        return len(self.features[0]) > len(PIXEL_FEATURES)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every entry: head names, then "group.seen" and "group.feature"."""
        groups = zip(GROUPS, self.features, strict=True)
        return (*HEAD, *(f"{group}.{name}" for group, names in groups for name in ("seen", *names)))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Places of "head" and of every group, its seen flag first."""
        places, start = {"head": slice(0, len(HEAD))}, len(HEAD)
        for group, names in zip(GROUPS, self.features, strict=True):
            places[group] = slice(start, start + 1 + len(names))
            start += 1 + len(names)
        return places

    @cached_property
    def size(self) -> int:
        """Length D of the vector."""
        return len(self.names)

    @cached_property
    def _hidden(self) -> dict[str, np.ndarray]:
        """What stands in the vector for each group that has not been revealed."""
        return {g: np.zeros(1 + len(names), np.float32) for g, names in zip(GROUPS, self.features, strict=True)}

    @cached_property
    def _flags(self) -> np.ndarray:
        """Places of the groups' seen flags."""
        return np.array([self.slices[group].start for group in GROUPS])

    @cached_property
    def _revealed(self) -> dict[bytes, np.ndarray]:
        """Seen flags -> what `revealed` gives."""
        return {}

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of every entry, (D,) float32 each; infinite for token features."""
        low, high = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)
        low[HEAD.index("log_lambda")] = log_lambda(LAMBDA_LIMITS[0])
        for name in ("budget_left", "spent"):
            high[HEAD.index(name)] = MAX_SHARE
        for group in TOKEN_GROUPS:
            inside = slice(self.slices[group].start + 1, self.slices[group].stop)
            low[inside], high[inside] = -np.inf, np.inf
        return low, high

    def assemble(self, stage: str, lam: float, progress: Progress, groups: Mapping[str, np.ndarray]) -> np.ndarray:
        """The observation at one stop.

        Args:
            stage: the stage that is about to be decided.
            lam: trade-off weight lambda of the reward quality - lambda * cost share.
            progress: what has been spent and what is left.
            groups: the revealed groups, each a (n,) vector in the order of its names; a picture's pixels may come
                without time features.

        Returns:
            (D,) float32. A NaN or infinite feature is passed on, for the reader to refuse.

        Raises:
            ValueError: unknown stage or group, or a vector of another length.
            Unseen: a video's pixels, where the layout is for pictures.
        """
        if stage not in STAGES:
            raise ValueError(f"stage: unknown {stage!r}; known: {', '.join(STAGES)}")
        if not self._hidden.keys() >= groups.keys():
            raise ValueError(f"groups: unknown {min(set(groups) - set(GROUPS))!r}; known: {', '.join(GROUPS)}")
        parts = [np.array(_ONE_HOT[stage] + _head(lam, progress), np.float32)]
        for group, hidden in self._hidden.items():
            if group not in groups:
                parts.append(hidden)
                continue
            values = np.asarray(groups[group], np.float32)
            if group == "pixels" and values.ndim == 1:
                values = self._pixels(values)
            if values.shape != (len(hidden) - 1,):
                raise ValueError(f"groups: {group!r} has shape {values.shape}, expected ({len(hidden) - 1},)")
            parts += (_SEEN, values)
        return np.concatenate(parts)

    def _pixels(self, values: np.ndarray) -> np.ndarray:
        """What is shown, as wide as this layout has it. Raises: Unseen."""
        if not self.video and len(values) == len(PIXEL_FEATURES + TIME_FEATURES):
            raise Unseen("groups: a video's 'pixels', and this layout is for pictures")
        return as_wide(values, len(self.features[0]))

    def revealed(self, vector: np.ndarray) -> np.ndarray:
        """(D,) bool: the entries that hold a feature of a group seen so far; head and flags are False. Not to be
        written to."""
        seen = vector[self._flags] > 0.5
        known = self._revealed.get(seen.tobytes())
        if known is None:
            known = np.zeros(self.size, bool)
            for group, yes in zip(GROUPS, seen, strict=True):
                known[self.slices[group].start + 1 : self.slices[group].stop] = yes
            self._revealed[seen.tobytes()] = known
        return known

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file."""
        groups = {group: list(names) for group, names in zip(GROUPS, self.features, strict=True)}
        version = LAYOUT_VERSIONS[self.video]
        return {"version": version, "features_version": FEATURES_VERSION, "head": list(HEAD), "groups": groups}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        """The layout of a file. Raises: ValueError where this code lays out or computes the observation differently."""
        for key, mine in (("version", LAYOUT_VERSIONS), ("features_version", (FEATURES_VERSION,))):
            if data[key] not in mine:
                known = " and ".join(map(str, mine))
                raise ValueError(f"observation {key} is {data[key]!r}, this code has {known}")
        check_order("head", data["head"], HEAD)
        layout = cls.of({group: data["groups"][group] for group in TOKEN_GROUPS}, data["version"] == LAYOUT_VERSIONS[1])
        for group, mine in zip(GROUPS, layout.features, strict=True):
            check_order(group, data["groups"][group], mine)
        return layout


def check_order(group: str, theirs: Sequence[str], mine: Sequence[str]) -> None:
    """Raises: ValueError naming the first place where two lists of feature names part."""
    for place in range(max(len(theirs), len(mine))):
        pair = [names[place] if place < len(names) else "nothing" for names in (theirs, mine)]
        if pair[0] != pair[1]:
            raise ValueError(f"feature {place} of group {group!r} is {pair[0]!r}, this code has {pair[1]!r}")


def log_lambda(lam: float) -> float:
    """lambda as it stands in the observation. Raises: ValueError on a negative or undefined lambda."""
    if not lam >= 0:
        raise ValueError(f"lam: {lam} is not a number >= 0")
    return math.log10(min(max(lam, LAMBDA_LIMITS[0]), LAMBDA_LIMITS[1])) / 2


def read_lambda(vector: np.ndarray) -> float:
    """The lambda that an observation was assembled with, within `LAMBDA_LIMITS`."""
    return 10.0 ** (2.0 * float(vector[HEAD.index("log_lambda")]))


def _head(lam: float, progress: Progress) -> tuple[float, ...]:
    """The six numbers after the stage."""
    left = MAX_SHARE if progress.budget is None else progress.budget - progress.spent
    return (
        log_lambda(lam),
        float(progress.budget is not None),
        _limited(left, MAX_SHARE),
        _limited(progress.spent, MAX_SHARE),
        _limited(progress.tokens_left, 1.0),
        _limited(math.log2(max(progress.turns, 1)) / 4, 1.0),
    )


def _limited(value: float, high: float) -> float:
    """`value` within [0, high]; NaN stays NaN, so that it is noticed."""
    return value if math.isnan(value) else min(max(value, 0.0), high)

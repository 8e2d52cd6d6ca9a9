"""One episode without the model: which decision is due, what is legal, what has been spent.

Every driver of a host shares this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.controller.features import question_features
from foveate.controller.motion import shown_features
from foveate.controller.observation import LAMBDA_LIMITS, Layout, Progress
from foveate.envs.inputs import Input
from foveate.envs.masks import Masks
from foveate.envs.quality import check_mode
from foveate.plans.plan import STAGES, UNCOMPRESSED, Choice, Plan

if TYPE_CHECKING:
    from foveate.models.inputs import PromptShape


@dataclass(frozen=True)
class Terms:
    """What episodes are drawn from and paid for.

    Attributes:
        lam: lowest and highest trade-off weight; drawn log-uniformly.
        budget: lowest and highest hard budget, as shares of the uncompressed FLOPs; drawn uniformly, raised to what the
            cheapest plan costs.
        budget_share: share of episodes that have a budget at all.
        quality: "exact", "graded" or "label_free".
        b: share of the graded part; may be lowered as training goes on.
        one_shot: the whole plan is asked for before anything has run.
    Raises:
        ValueError: a value outside its range.
    """

    lam: tuple[float, float] = (0.03, 10.0)
    budget: tuple[float, float] = (0.1, 1.0)
    budget_share: float = 0.5
    quality: str = "exact"
    b: float = 0.0
    one_shot: bool = False

    def __post_init__(self) -> None:
        check_mode(self.quality, self.b)
        low, high = self.lam
        if not LAMBDA_LIMITS[0] <= low <= high <= LAMBDA_LIMITS[1]:
            raise ValueError(f"lam: {self.lam} is not a range within {LAMBDA_LIMITS}")
        if not 0 < self.budget[0] <= self.budget[1] < np.inf:
            raise ValueError(f"budget: {self.budget} is not a range of positive shares")
        if not 0 <= self.budget_share <= 1:
            raise ValueError(f"budget_share: {self.budget_share} is outside [0, 1]")

    def draw_lambda(self, rng: np.random.Generator) -> float:
        """One lambda, log-uniform."""
        low, high = np.log(self.lam)
        return float(np.exp(rng.uniform(low, high)))

    def draw_budget(self, rng: np.random.Generator, least: float) -> float | None:
        """One budget as a share of the uncompressed FLOPs, or None; `least` is the cheapest plan's share."""
        has, place = rng.random() < self.budget_share, rng.uniform(*self.budget)
        return max(place, least) if has else None


@dataclass
class Episode:
    """The decisions on one input so far.

    Attributes:
        input: what is shown and asked.
        lam: trade-off weight.
        budget: hard limit as a share of `full`; None = no limit.
        shape: of the row that the host makes of it.
        full: FLOPs of the uncompressed pass.
        plan: the decisions so far.
        at: number of the stage that is due; 6 = all are settled.
        spent: FLOPs so far, features included. paid: those already in a reward.
        tokens_left: share of visual tokens still there.
        groups: the revealed features.
    """

    masks: Masks
    input: Input
    lam: float
    budget: float | None
    shape: PromptShape
    full: float
    plan: Plan = UNCOMPRESSED
    at: int = 0
    spent: float = 0.0
    paid: float = 0.0
    tokens_left: float = 1.0
    groups: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def begin(cls, masks: Masks, input: Input, shape: PromptShape, lam: float, budget: float | None) -> Episode:
        """A new episode at its first decision; where nothing is to be decided at all, at stage `input` with its one
        action.

        Raises:
            ValueError: lambda or budget out of range; a budget below the cheapest plan, which is named.
        """
        if not LAMBDA_LIMITS[0] <= lam <= LAMBDA_LIMITS[1]:
            raise ValueError(f"lam: {lam} is outside {LAMBDA_LIMITS[0]} .. {LAMBDA_LIMITS[1]}")
        if budget is not None and not 0 < budget < np.inf:
            raise ValueError(f"budget: {budget} is not a positive share of the uncompressed FLOPs")
        episode = cls(masks, input, lam, budget, shape, masks.full(shape))
        episode.groups["pixels"] = shown_features(input.image)
        episode.groups["question"] = question_features(input.question)
        episode._pass_by()
        if episode.done:
            episode.at, episode.plan = 0, UNCOMPRESSED
        return episode

    @property
    def done(self) -> bool:
        """Every stage is settled."""
        return self.at == len(STAGES)

    @property
    def stage(self) -> str:
        """The stage that is due. Raises: ValueError once all are settled."""
        if self.done:
            raise ValueError(f"{self.input.id}: the episode is over; reset comes first")
        return STAGES[self.at]

    @property
    def limit(self) -> float | None:
        """The budget in FLOPs; a billionth more, so that a share computed from FLOPs still admits them."""
        return None if self.budget is None else self.budget * self.full * (1 + 1e-9)

    def mask(self) -> np.ndarray:
        """(M, R) bool, the legal actions at the stage that is due; once all are settled, `none` alone."""
        if self.done:
            alone = np.zeros(self.masks.table.shape, dtype=bool)
            alone[0, 0] = True
            return alone
        return self.masks.mask(self.stage, self.plan, self.shape, self.limit)

    def act(self, action: Any) -> None:
        """Takes one action and passes by every stage behind it that has only one.

        Args:
            action: (m, r), whole numbers; an array of two.
        Raises:
            ValueError: not a legal action; the message names stage, action and reason. The episode is as before.
        """
        choice = self.choice(action)
        self.plan, self.at = self.plan.replace(self.stage, choice), self.at + 1
        self._pass_by()

    def choice(self, action: Any) -> Choice:
        """What an action stands for, as it is legal here. Raises: ValueError, see `act`."""
        stage, table = self.stage, self.masks.table
        try:
            m, r = (int(each) for each in action)
            exact = (m, r) == tuple(float(each) for each in action)
        except (TypeError, ValueError, OverflowError):
            exact = False
        if not exact:
            raise ValueError(f"{stage}: action {action!r} is not a pair of whole numbers (method row, ratio level)")
        choice = table.decode(stage, m, r)  # names stage and action where the table does not offer it
        if not self.mask()[m, r]:
            reason = self.masks.refusal(choice, stage, self.plan, self.shape)
            raise ValueError(f"{stage}: action ({m}, {r}), {choice.method}@{choice.keep}, is not legal: {reason}")
        return choice

    def _pass_by(self) -> None:
        """Settles the stages that have one legal action."""
        while not self.done:
            legal = np.argwhere(self.mask())
            if len(legal) > 1:
                return
            self.plan = self.plan.replace(self.stage, self.masks.table.decode(self.stage, *legal[0]))
            self.at += 1

    def pay(self) -> float:
        """Cost share spent since it was last asked."""
        due, self.paid = (self.spent - self.paid) / self.full, self.spent
        return due

    def observe(self, layout: Layout) -> dict[str, np.ndarray]:
        """The observation at the stage that is due (the last one, once all are settled).

        Returns:
            Fresh arrays "vector" (D,) float32 and "mask" (M, R) int8.
        Raises:
            ValueError: a feature is not a finite number; the message names it.
        """
        progress = Progress(self.spent / self.full, self.tokens_left, self.budget)
        vector = layout.assemble(STAGES[-1] if self.done else self.stage, self.lam, progress, self.groups)
        if not np.isfinite(vector).all():
            name = layout.names[int(np.flatnonzero(~np.isfinite(vector))[0])]
            raise ValueError(f"{self.input.id}: observation entry {name!r} is not a finite number")
        return {"vector": vector, "mask": self.mask().astype(np.int8)}

    def info(self) -> dict[str, Any]:
        """Where the episode stands: plain data, the same in every run."""
        return {
            "input": self.input.id,
            "regime": self.input.regime,
            "family": self.input.family,
            "lam": self.lam,
            "budget": self.budget,
            "plan": self.plan.label(),
            "stage": "end" if self.done else self.stage,
            "cost": self.spent / self.full,
        }


def group_vectors(layout: Layout, vector: np.ndarray) -> Mapping[str, np.ndarray]:
    """The revealed groups of an observation vector: the inverse of what `observe` wrote."""
    seen = {name: place for name, place in layout.slices.items() if name != "head" and vector[place.start] > 0.5}
    return {name: vector[place.start + 1 : place.stop].copy() for name, place in seen.items()}

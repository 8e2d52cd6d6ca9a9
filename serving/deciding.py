"""Rows through a host, stage by stage, each by what the controller decides from what has been revealed so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from foveate.controller.decision import Controller, Decision
from foveate.controller.features import question_features
from foveate.controller.motion import shown_features
from foveate.controller.observation import Progress
from foveate.models.features import reveal
from foveate.models.host import Host
from foveate.models.inputs import PromptShape, Row
from foveate.models.masks import STOP_GROUP, Masks, feature_flops
from foveate.models.passes import Pass
from foveate.plans.masks import plan_refusal
from foveate.plans.plan import NONE, STAGES, UNCOMPRESSED, Choice, Plan
from foveate.plans.portfolio import ActionTable, Portfolio
from foveate.tasks.clip import Clip

UNTRUSTED = ("nan", "error")
"""Reasons after which what has already run is not believed, whatever the limit."""


Shown = np.ndarray | Clip | Sequence[np.ndarray | Clip]
"""A row's picture or video, or several; an array of four axes is a video."""


@dataclass(frozen=True)
class Dials:
    """What a request is decided by.

    Attributes:
        lam: trade-off weight.
        max_flops: most FLOPs of one row, its longest possible answer included; None = no limit.
        deadline: seconds that the decisions of one call may take; None = no limit.
    """

    lam: float
    max_flops: float | None = None
    deadline: float | None = None


@dataclass
class Course:
    """One row's decisions.

    Attributes:
        full: FLOPs of the uncompressed pass, what cost shares are shares of.
        limit: most FLOPs of this row's prompt and counted answer; None = no limit.
        plan: so far.
        taken: (stage, choice, reason) of each decision.
        fallen: why the row is no longer decided on; None = it is.
        redo: what ran does not count: the row is answered anew, uncompressed.
        groups: revealed features.
        asked: times that the controller was asked.
    """

    full: float
    limit: float | None = None
    plan: Plan = UNCOMPRESSED
    taken: list[tuple[str, Choice, str]] = field(default_factory=list)
    fallen: str | None = None
    redo: bool = False
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    asked: int = 0

    @property
    def reason(self) -> str:
        """Why the row is as it is: why it fell, else who decided, else "none" where there was nothing to decide."""
        return self.fallen or (self.taken[-1][2] if self.taken else "none")

    def take(self, stage: str, choice: Choice, reason: str) -> None:
        """Notes a decision."""
        self.taken.append((stage, choice, reason))
        self.plan = self.plan.replace(stage, choice)

    def fall(self, reason: str, redo: bool) -> None:
        """Ends the decisions; with `redo` what has been compressed does not count."""
        self.fallen, self.redo = reason, redo and bool(self.plan.active)


class Driver:
    """Runs batches of one host under one controller. Safe to share between threads.

    Args:
        host: the model.
        controller: made for this host.
    Raises:
        ValueError: the controller's portfolio offers nothing that this host can run.
    """

    def __init__(self, host: Host, controller: Controller) -> None:
        self.host, self.controller = host, controller
        artefact = controller.artefact
        table = artefact.table or ActionTable.from_portfolio(Portfolio.from_dict(artefact.portfolio))
        self.masks = Masks(host, table, feature_cost=None if artefact.table is None else partial(feature_flops, host))
        self.decision_flops = sum(2 * array.size for array in artefact.network.arrays.values() if array.ndim == 2)
        self._full: dict[PromptShape, float] = {}
        self._whole: dict[PromptShape, np.ndarray] | None = {} if artefact.table is None else None

    def run(
        self, rows: Sequence[Row], pictures: Sequence[Shown], dials: Dials, new_tokens: int
    ) -> tuple[Pass, list[Course], float]:
        """A pass behind its last stage.

        Args:
            rows: what the host opens.
            pictures: of each row, for pixel features; a sequence where it has several.
            dials: what to decide by.
            new_tokens: longest possible answer, for the hard limit.
        Returns:
            The pass, each row's decisions, and the seconds that features and decisions took for all of them.
        Raises:
            Exception: whatever a compressor or the host trips over.
        """
        begun = time.perf_counter()
        p = Pass(self.host, rows)
        courses = [self._course(row, picture, dials, new_tokens) for row, picture in zip(rows, pictures, strict=True)]
        used = time.perf_counter() - begun
        for stage in STAGES:
            used = self._decide(p, stage, courses, dials, used)
            p.run_stage(stage, [course.plan for course in courses])
        for ledger, course in zip(
            p.ledger, courses, strict=True
        ):  # at the end: what a policy sees as spent is without it
            ledger.add("controller", "decisions", self.decision_flops * course.asked)
        return p, courses, used

    def _course(self, row: Row, picture: Shown, dials: Dials, new_tokens: int) -> Course:
        if row.shape not in self._full:
            self._full[row.shape] = self.masks.full(row.shape)
        full = self._full[row.shape]
        course = Course(full)
        if dials.max_flops is not None:
            longest = self.host.forecast(UNCOMPRESSED, row.shape, new_tokens).total
            decisions = self.decision_flops * len(STAGES)
            course.limit = dials.max_flops - max(0.0, longest - full) - decisions
        course.groups = {"pixels": shown_features(picture), "question": question_features(row.question)}
        return course

    def _decide(self, p: Pass, stage: str, courses: list[Course], dials: Dials, used: float) -> float:
        """Settles one stage of every row; returns the seconds used for decisions so far."""
        begun = time.perf_counter()
        masks = [self.legal(stage, row.shape, course) for row, course in zip(p.rows, courses, strict=True)]
        due = [i for i, mask in enumerate(masks) if mask.sum() > 1 and courses[i].fallen is None]
        used += time.perf_counter() - begun
        if due and self._whole is None and stage in STOP_GROUP:
            self._peek(p, stage)
            begun = time.perf_counter()
            self._reveal(p, STOP_GROUP[stage], due, courses)
            used += time.perf_counter() - begun
        begun = time.perf_counter()
        for i, (mask, course) in enumerate(zip(masks, courses, strict=True)):
            if i in due and dials.deadline is not None and used + time.perf_counter() - begun > dials.deadline:
                course.fall("deadline", redo=False)  # a second pass would be later still
            if i in due and course.fallen is None:
                self._ask(p, i, stage, course, mask, dials)
            elif self._whole is None:
                course.plan = course.plan.replace(stage, self.masks.table.decode(stage, *mildest(mask)))
        return used + time.perf_counter() - begun

    def legal(self, stage: str, shape: PromptShape, course: Course) -> np.ndarray:
        """What is legal for a row; where nothing is, it falls and goes on uncompressed."""
        if self._whole is not None:
            return self._whole_mask(stage, shape, course)
        none = np.zeros(self.masks.table.shape, bool)
        none[0, 0] = True
        if course.fallen == "budget" or (course.fallen and course.limit is None):
            return none
        try:
            return self.masks.mask(stage, course.plan, shape, course.limit)
        except ValueError:
            course.fall("budget", redo=False)
            return none

    def _whole_mask(self, stage: str, shape: PromptShape, course: Course) -> np.ndarray:
        """The same where the whole plan is chosen at `input`."""
        plans = self.controller.artefact.plans
        if stage != STAGES[0]:
            return np.zeros((len(plans), 1), bool)
        if shape not in self._whole:
            rules = self.masks.rules(shape)
            self._whole[shape] = np.asarray([[plan_refusal(plan, rules) is None] for plan in plans])
        mask = self._whole[shape].copy()
        if course.limit is not None:
            prices = [self.masks.price(p, shape) if ok else np.inf for p, ok in zip(plans, mask[:, 0], strict=True)]
            mask[:, 0] &= np.asarray(prices) <= course.limit
        if not mask.any():
            course.fall("budget", redo=False)
        return mask

    @staticmethod
    def _peek(p: Pass, stage: str) -> None:
        """Runs what the features of a stop look at: part of the pass, so not of the decision's time."""
        if stage == "encoder":
            p.peek_encoder()
        elif stage == "prefill":
            p.peek()

    def _reveal(self, p: Pass, group: str, due: Sequence[int], courses: list[Course]) -> None:
        """Shows rows the features of a stop; only those that decide there pay for them."""
        bills = [ledger.copy() for ledger in p.ledger]
        for i, vector in enumerate(reveal(p, group)):
            if i in due:
                courses[i].groups[group] = vector
            else:
                p.ledger[i] = bills[i]

    def _ask(self, p: Pass, i: int, stage: str, course: Course, mask: np.ndarray, dials: Dials) -> None:
        """One row's decision at one stage."""
        whole = p.rows[i].shape.n_tokens
        before = p.counts[STAGES[STAGES.index(stage) - 1]][i] if stage != STAGES[0] else whole
        budget = None if course.limit is None else course.limit / course.full
        progress = Progress(p.ledger[i].total / course.full, before / whole, budget)
        decision = self.controller.decide_stop(stage, course.groups, progress, mask, dials.lam)
        course.asked += 1
        if self._whole is not None:
            self._take_plan(course, decision)
            return
        choice = self.controller.choice(stage, decision)
        if not decision.safe:
            course.take(stage, choice, decision.reason)
            return
        course.fall(decision.reason, redo=course.limit is None or decision.reason in UNTRUSTED)
        course.take(stage, NONE if course.redo else choice, decision.reason)

    def _take_plan(self, course: Course, decision: Decision) -> None:
        if decision.safe:
            course.fall(decision.reason, redo=False)
        course.plan = self.controller.plan(decision)
        chosen = course.plan.active or ((STAGES[0], NONE),)
        course.taken = [(stage, choice, decision.reason) for stage, choice in chosen]


def mildest(mask: np.ndarray) -> tuple[int, int]:
    """The legal action that compresses least: none where it may, else the highest ratio there is."""
    if mask[0, 0] or not mask.any():
        return 0, 0
    level, row = np.argwhere(mask.T)[0]
    return int(row), int(level)

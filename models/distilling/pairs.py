"""Teacher and student: one batch through a host twice, with all tokens and with the method that learns.

Both share what runs before the method. The student's pass keeps its gradients; since the host is fixed they reach the
network alone. It is the very pass that runs a trained method, so whatever a host can run it can teach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.compressors.base import STAGES, Compressor, Grid
from foveate.models.answers import forced
from foveate.models.distilling.lessons import Lesson
from foveate.models.host import Host
from foveate.models.inputs import padded
from foveate.models.passes import ACTS, Pass
from foveate.models.prompt import joined
from foveate.models.visual import VisualState
from foveate.plans.plan import keep_count

ANSWER = 16
"""Tokens at most of an answer that the teacher gives where the data hold none."""

Shape = tuple[int, Grid]
"""Tokens and grid of what a method acts on."""


@dataclass(frozen=True)
class Answers:
    """Token ids (R, Q) of one answer for each row, right-padded, and their lengths (R,)."""

    ids: Tensor
    length: Tensor


class Batch:
    """Some lessons in a host, standing before a stage.

    Args:
        host: fixed.
        stage: where the method acts.
        lessons: one for each row.
    """

    def __init__(self, host: Host, stage: str, lessons: Sequence[Lesson]) -> None:
        self.host, self.stage, self.lessons = host, stage, lessons
        self.start = host.open([lesson.image for lesson in lessons], [lesson.question for lesson in lessons])
        for before in STAGES[: STAGES.index(stage)]:
            getattr(self.start, ACTS[before])()
        self.teacher = self._fork()

    def _fork(self) -> Pass:
        return self.start.fork(range(len(self.start)))

    @property
    def shapes(self) -> list[list[Shape]]:
        """Of each row: what the method will act on, call by call; views of which the prompt shows nothing left out."""
        if STAGES.index(self.stage) < STAGES.index("prefill"):
            rows = [self.start.laid[row].views for row in range(len(self.start))]
            if self.start.states:
                rows = [self.start.of_row(list(self.start.states)[-1], row) for row in range(len(self.start))]
            return [[(view.n, view.grid) for view in views if view.n] for views in rows]
        states = [self.start.of_row("projector", row) for row in range(len(self.start))]
        grids = [joined([s.grid for s in each], all(s.whole for s in each))[0] for each in states]
        return [[(sum(s.n for s in each), grid)] for each, grid in zip(states, grids, strict=True)]

    def student(self, stage: str, method: Compressor, keeps: Sequence[float], learning: bool = False) -> Pass:
        """A pass with a method at a stage that is not before the batch's own; it stands behind that stage."""
        p = self._fork()
        p.learning = learning
        getattr(p, ACTS[stage])(method, list(keeps))
        return p

    def answers(self) -> Answers:
        """What the data say, or the teacher where they say nothing; the teacher's prefill has run then."""
        _prefilled(self.teacher)
        said: list[list[int]] = []
        if any(lesson.answer is None for lesson in self.lessons):
            self.teacher.decode(max_new_tokens=ANSWER)
            said = [[i for i in ids if i not in self.host.ends] for ids in self.teacher.generated]
        rows = [
            said[row] if lesson.answer is None else self.host.inputs.answer_ids(self.start.rows[row], lesson.answer)
            for row, lesson in enumerate(self.lessons)
        ]
        return Answers(*padded(rows, self.teacher.logits.device))


def views(p: Pass) -> list[VisualState]:
    """Every view behind the projector; what has not run yet runs untouched."""
    if "projector" not in p.counts:
        p.project()
    return p.states["projector"]


def logits(p: Pass, answers: Answers, rows: Sequence[int]) -> Tensor:
    """(R, 1 + Q, V) float32 behind the prompts of some rows and behind each token of their answers."""
    _prefilled(p)
    index = torch.tensor(rows, device=answers.ids.device)
    with torch.set_grad_enabled(p.learning):
        return forced(p, index, answers.ids[index])


def _prefilled(p: Pass) -> None:
    """What has not run yet of the prompt runs untouched."""
    if "prefill" not in p.counts:
        p.prefill()


def drawn(method: Compressor, shapes: Sequence[Shape], draw: float) -> float:
    """The keep ratio for a row: one of the counts that a method is trained at, by a number in [0, 1); 1 on a picture
    where it is for videos."""
    if not shapes or (method.modality == "video" and min(grid[0] for _, grid in shapes) == 1):
        return 1.0
    n, grid = shapes[0]
    counts = [count for count in method.training_counts(grid) if count < n]
    return nearest([method], shapes, counts[int(draw * len(counts))] / n) if counts else 1.0


def nearest(methods: Sequence[Compressor], shapes: Sequence[Shape], wanted: float) -> float:
    """The keep ratio nearest to one wanted at which all methods give exact counts on all views; 1 = there is none."""
    fits = [{c for c in _common(methods, grid) if c < n} for n, grid in shapes]
    options = {count / n for (n, _), counts in zip(shapes, fits, strict=True) for count in counts}
    for ratio in sorted(options, key=lambda ratio: (abs(math.log(ratio / wanted)), ratio)):
        if all(keep_count(n, ratio) in counts for (n, _), counts in zip(shapes, fits, strict=True)):
            return ratio
    return 1.0


def _common(methods: Sequence[Compressor], grid: Grid) -> set[int]:
    """Counts that all methods give on a grid."""
    return set.intersection(*(set(method.reachable(grid)) for method in methods))

"""The built-in tasks by name, and even streams over their regimes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from foveate.tasks.base import Sample, Task, check_address
from foveate.tasks.charts import Charts
from foveate.tasks.digits import Digits
from foveate.tasks.documents import Documents
from foveate.tasks.easy_vqa import EasyVQA
from foveate.tasks.films.task import long_video, video
from foveate.tasks.pictures import Pictures
from foveate.tasks.reading import Reading
from foveate.tasks.scenes import Scenes
from foveate.tasks.splits import stream
from foveate.tasks.transcripts import Transcripts

PAGES = (Reading(), Documents(), Charts(), Digits())
BUILT_IN = (Scenes(), *PAGES, Pictures(), EasyVQA(), video(), long_video(), Transcripts())
TASKS: dict[str, Task] = {task.name: task for task in BUILT_IN}


def get_task(name: str) -> Task:
    """The task called `name`, or else the one that has a regime of that name.

    Raises:
        ValueError: there is none; near names are listed.
    """
    found = TASKS.get(name) or _owner(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(name, sorted({*TASKS, *_regimes()})) or sorted(TASKS)
    raise ValueError(f"task {name!r} is unknown, did you mean {' or '.join(near)}?")


def regimes(tasks: Sequence[str] | None = None) -> tuple[str, ...]:
    """Regimes, each once: those of the tasks named, and those that are named themselves; None = of every task that is
    usable here, in registry order. Raises: ValueError, see `get_task`."""
    if tasks is None:
        return tuple(regime for task in TASKS.values() if task.available() is None for regime in task.regimes)
    found: list[str] = []
    for name in tasks:
        task = get_task(name)
        found += task.regimes if name == task.name else (name,)
    return tuple(dict.fromkeys(found))


def regime_sample(regime: str, split: str, index: int) -> Sample:
    """The sample at `index` among those of one regime: a pure function of its arguments.

    Raises:
        ValueError: no task has that regime (near names are listed), the split is unknown or the index negative.
    """
    check_address(split, index)
    task = _owner(regime)
    if task is not None:
        return task.sample(split, index * len(task.regimes) + task.regimes.index(regime))
    near = difflib.get_close_matches(regime, _regimes()) or sorted(_regimes())
    raise ValueError(f"regime {regime!r} is unknown, did you mean {' or '.join(near)}?")


def _owner(regime: str) -> Task | None:
    """The task that has a regime of that name."""
    return next((task for task in TASKS.values() if regime in task.regimes), None)


def _regimes() -> list[str]:
    """Of all tasks, usable here or not."""
    return [regime for task in TASKS.values() for regime in task.regimes]


def iter_samples(tasks: Sequence[str], split: str, n: int, seed: int = 0) -> Iterator[Sample]:
    """`n` samples of `split` in which every regime of `tasks` has an equal share (give or take one).

    Args:
        tasks: names of tasks or of single regimes.
        split: one of SPLITS.
        n: how many samples.
        seed: order of the regimes inside each round; the set of samples does not depend on it, bar the last round.

    Raises:
        ValueError: an unknown task or split, no task at all, a negative n, or a task that is not usable here.
    """
    check_address(split, 0)
    if n < 0:
        raise ValueError(f"n is {n}, the number of samples must be at least 0")
    for name in tasks:
        reason = get_task(name).available()
        if reason:
            raise ValueError(f"task {name!r} is not usable: {reason}")
    names = list(regimes(tasks))
    if not names:
        raise ValueError("tasks is empty, name at least one task")
    for start in range(0, n, len(names)):
        order = stream("iter_samples", seed, split, start).sample(names, len(names))
        for regime in order[: n - start]:
            yield regime_sample(regime, split, start // len(names))

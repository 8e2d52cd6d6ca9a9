"""A learned compressor taught by several processes: each has the model and takes a share of every step's rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch

from foveate.models.distilling.lessons import Lessons
from foveate.models.distilling.pupil import Pupil
from foveate.models.distilling.recipe import find
from foveate.models.distilling.settings import Settings
from foveate.models.errors import HostError
from foveate.models.host import Host
from foveate.rollouts.ray_pool import Crew, RaySettings, WorkerLost

Found = tuple[list[np.ndarray | None], dict[str, float], float]
"""Gradients of a share in the order of `Pupil.parameters`, its losses, its mean keep ratio."""


class Sharer:
    """Takes one share of the rows of any step.

    Args:
        load: opens the model.
        name: of the method, see `find`.
        lessons, settings: of the training.
        share, shares: which of how many.
        threads: torch threads.
    """

    def __init__(
        self,
        load: Callable[[], Host],
        name: str,
        lessons: Lessons,
        settings: Settings,
        share: int,
        shares: int,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        host = load()
        stage, method = find(name, host)
        self.pupil, self.share = Pupil(host, stage, method, lessons, settings), (share, shares)

    def learn(self, state: dict[str, dict[str, np.ndarray]], part: str, step: int) -> Found | str:
        """The gradients at these weights; why there are none where no row of the share can be compressed."""
        self.pupil.load(
            {name: {k: torch.from_numpy(v.copy()) for k, v in each.items()} for name, each in state.items()}
        )
        for parameter in self.pupil.parameters():
            parameter.grad = None
        try:
            losses, keep = self.pupil.learn(part, step, *self.share)
        except HostError as error:
            return str(error)
        return [None if p.grad is None else p.grad.cpu().numpy() for p in self.pupil.parameters()], losses, keep


class Together:
    """Gives a pupil the mean of the gradients of all shares, weighted by rows: what `Run` takes for `learn`.

    A worker that is lost is replaced and does its share again: nothing in it outlives a step. As many rows are shown as
    by one process; sums are taken in another order, and a mean over answers is one within each share, so weights are
    near those that one process would give and the same for the same number of workers.

    Args:
        load: opens the model, in every worker.
        name: of the method.
        lessons, settings: of the training.
        ray: workers; their number must not be above the rows of a step.
    Raises:
        ValueError: more workers than rows.
    """

    def __init__(
        self, load: Callable[[], Host], name: str, lessons: Lessons, settings: Settings, ray: RaySettings
    ) -> None:
        if ray.workers > settings.batch:
            raise ValueError(f"workers: {ray.workers} cannot share {settings.batch} rows of a step; make batch larger")
        self.rows = [len(range(settings.batch)[share :: ray.workers]) for share in range(ray.workers)]
        self.crew = Crew(Sharer, lambda share: (load, name, lessons, settings, share, ray.workers, ray.threads), ray)

    def learn(self, pupil: Pupil, part: str, step: int) -> tuple[dict[str, float], float]:
        """See `Pupil.learn`."""
        state = {name: {k: v.cpu().numpy() for k, v in each.items()} for name, each in pupil.state().items()}
        call = (ray.put(state), part, step)
        refs = [self.crew.call(share, "learn", *call) for share in range(len(self.rows))]
        found = [self._insist(share, ref, call) for share, ref in enumerate(refs)]
        some = [(each, rows) for each, rows in zip(found, self.rows, strict=True) if not isinstance(each, str)]
        if not some:
            raise HostError(found[0])
        total, losses, keep = sum(rows for _, rows in some), {}, 0.0
        for (gradients, each, ratio), rows in some:
            for parameter, gradient in zip(pupil.parameters(), gradients, strict=True):
                if gradient is not None:
                    more = torch.from_numpy(gradient.copy()).to(parameter) * (rows / total)
                    parameter.grad = more if parameter.grad is None else parameter.grad + more
            losses = {name: losses.get(name, 0.0) + value * rows / total for name, value in each.items()}
            keep += ratio * rows / total
        return losses, keep

    def _insist(self, share: int, ref: Any, call: tuple) -> Found | str:
        """A share's result, from a new worker where the old one is lost."""
        while True:
            try:
                return self.crew.fetch(ref)
            except WorkerLost as why:
                self.crew.revive(share, why)
                ref = self.crew.call(share, "learn", *call)

    def close(self) -> None:
        """Ends the workers."""
        self.crew.close()

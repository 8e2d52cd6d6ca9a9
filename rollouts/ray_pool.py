"""A crew of Ray actors that is kept alive: lost or hanging workers are replaced, and callers told to call again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

if TYPE_CHECKING:
    from foveate.models.host import Host


@dataclass(frozen=True)
class RaySettings:
    """Where and how workers run.

    Attributes:
        workers: how many actors.
        num_cpus, num_gpus: of each; a part of a GPU is bookkeeping, it does not limit memory.
        threads: torch threads of each. Equal numbers of threads give equal trajectories.
        timeout_s: longest wait for one call; a worker that takes longer is replaced.
        max_restarts: replacements of one worker before the run gives up.
        address: of a running cluster ("auto"); None = start one here unless one is connected.
        options: more for `ray.remote(...).options`, such as a placement group's scheduling strategy.
    Raises:
        ValueError: a number out of range.
    """

    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1
    timeout_s: float = 600.0
    max_restarts: int = 3
    address: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 1 or self.timeout_s <= 0 or self.max_restarts < 0:
            raise ValueError(
                f"ray: workers = {self.workers} and threads = {self.threads} must be at least 1, timeout_s = "
                f"{self.timeout_s} above 0, max_restarts = {self.max_restarts} at least 0"
            )


class WorkerLost(Exception):
    """A worker died or did not answer in time: its last call may or may not have run, and its memory is gone."""


class Crew:
    """Actors of one class.

    Args:
        body: the class; the crew makes an actor of it.
        arguments: number of a worker -> arguments of its constructor.
        settings: where and how.
    Raises:
        RuntimeError: the cluster has fewer CPUs or GPUs than the crew needs.

    Attributes:
        restarts: replacements so far, by worker.
    """

    def __init__(self, body: type, arguments: Callable[[int], tuple], settings: RaySettings) -> None:
        if not ray.is_initialized():
            ray.init(address=settings.address, include_dashboard=False, log_to_driver=False)
        _check_room(settings)
        self.settings, self.arguments = settings, arguments
        self.restarts = [0] * settings.workers
        self._body = ray.remote(body).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            **_with_sleeping_threads(settings.options),
        )
        self.actors = [self._body.remote(*arguments(number)) for number in range(settings.workers)]

    def call(self, number: int, method: str, *arguments: Any) -> ray.ObjectRef:
        """Starts a call on a worker."""
        return getattr(self.actors[number], method).remote(*arguments)

    def fetch(self, ref: ray.ObjectRef) -> Any:
        """The result of a call.

        Raises:
            WorkerLost: see there; `revive` comes next. What the call itself raised is raised as it was.
        """
        try:
            return ray.get(ref, timeout=self.settings.timeout_s)
        except GetTimeoutError:
            raise WorkerLost(f"no answer within {self.settings.timeout_s} s") from None
        except RayActorError as error:
            raise WorkerLost(_in_short(error)) from None
        except RayTaskError as error:
            raise error.cause from None

    def revive(self, number: int, why: WorkerLost) -> None:
        """Replaces a worker. Raises: RuntimeError once that was done `max_restarts` times."""
        if self.restarts[number] >= self.settings.max_restarts:
            raise RuntimeError(
                f"worker {number} was lost {self.restarts[number] + 1} times, more than max_restarts = "
                f"{self.settings.max_restarts}; last: {why}"
            )
        self.restarts[number] += 1
        ray.kill(self.actors[number], no_restart=True)
        self.actors[number] = self._body.remote(*self.arguments(number))

    def close(self) -> None:
        """Ends the actors; Ray itself stays."""
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        self.actors = []


def _with_sleeping_threads(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an actor whose waiting OpenMP threads sleep, unless its environment, the job's or this process's says
    otherwise. Spinning ones take the cores of other workers; torch reads the variable when it is loaded, and a worker
    on another machine does not see this process's."""
    own = options.get("runtime_env") or {}
    known = {**(ray.get_runtime_context().runtime_env.get("env_vars") or {}), **(own.get("env_vars") or {})}
    variables = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"), **known}
    return {**options, "runtime_env": {**own, "env_vars": variables}}


def _in_short(error: RayActorError) -> str:
    """First and last line of what Ray says: that an actor died, and of what."""
    said = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    lines = [line for line in said if line] or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def _check_room(settings: RaySettings) -> None:
    """Fails at once where actors would wait for ever."""
    have = ray.cluster_resources()
    for name, each in (("CPU", settings.num_cpus), ("GPU", settings.num_gpus)):
        need = each * settings.workers
        if need > have.get(name, 0.0) + 1e-9:
            raise RuntimeError(
                f"ray: {settings.workers} workers need {need:g} {name}s, the cluster has {have.get(name, 0.0):g}"
            )


def opened(host: Host | str | Path, threads: int) -> Host:
    """A host in a worker's process."""
    import torch

    from foveate.models import load_host

    torch.set_num_threads(threads)
    return load_host(host) if isinstance(host, str | Path) else host


class HostWorker:
    """Runs functions of a host.

    Args:
        host: an opened model, or what `load_host` takes.
        threads: torch threads.
    """

    def __init__(self, host: Host | str | Path, threads: int) -> None:
        self.host = opened(host, threads)

    def run(self, function: Callable[..., Any], argument: Any) -> Any:
        """function(host, argument)."""
        return function(self.host, argument)


def map_on_hosts(
    host: Host | str | Path,
    function: Callable[..., Any],
    jobs: Iterable[tuple[Any, Sequence]],
    settings: RaySettings,
) -> Iterator[tuple[Any, Any]]:
    """(key, function(host, argument)) of each (key, argument), in order, on a crew; a lost worker's job is run again.

    The function must give the same for the same argument, since a job may run twice.
    """
    jobs = list(jobs)
    shared = ray.put(host) if ray.is_initialized() and not isinstance(host, str | Path) else host
    crew = Crew(HostWorker, lambda number: (shared, settings.threads), settings)
    try:
        refs: dict[int, ray.ObjectRef] = {}
        for number, (key, _) in enumerate(jobs):
            for ahead in range(number, min(number + settings.workers, len(jobs))):
                if ahead not in refs:
                    refs[ahead] = crew.call(ahead % settings.workers, "run", function, jobs[ahead][1])
            yield key, _insist(crew, refs, number, function, jobs)
            del refs[number]
    finally:
        crew.close()


def _insist(crew: Crew, refs: dict[int, ray.ObjectRef], number: int, function: Callable, jobs: Sequence) -> Any:
    """The result of a job, on a new worker where the old one is lost."""
    worker = number % crew.settings.workers
    while True:
        try:
            return crew.fetch(refs[number])
        except WorkerLost as why:
            crew.revive(worker, why)
            for waiting in [each for each in refs if each % crew.settings.workers == worker]:
                refs[waiting] = crew.call(worker, "run", function, jobs[waiting][1])

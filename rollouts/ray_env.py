"""RayVecEnv: the shards of `BatchVecEnv` on Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from foveate.rollouts.ray_pool import Crew, RaySettings, WorkerLost, opened
from foveate.rollouts.shard import Setup, Shard
from foveate.rollouts.vec import BatchVecEnv

if TYPE_CHECKING:
    from foveate.models.host import Host


class ShardWorker:
    """An actor's body: one host and some shards.

    Args:
        setup: of the environment.
        host: an opened model, or what `load_host` takes.
        threads: torch threads.
        shards: their numbers.
        states: where they stand, None = before their first episode.
    """

    def __init__(
        self, setup: Setup, host: Host | str | Path, threads: int, shards: Sequence[int], states: Sequence[dict | None]
    ) -> None:
        host = opened(host, threads)
        self.shards = {index: Shard(setup, host, index) for index in shards}
        for index, state in zip(shards, states, strict=True):
            if state is not None:
                self.shards[index].restore(state)

    def call(self, index: int, method: str, arguments: tuple) -> tuple[Any, dict[str, Any]]:
        """The result of a shard's method, and where the shard stands behind it."""
        result = getattr(self.shards[index], method)(*arguments)
        return result, self.shards[index].state()


class RayVecEnv(BatchVecEnv):
    """`BatchVecEnv` with its shards dealt out to workers, strictly in order.

    The same setup gives the same trajectories, bit for bit, with any number of workers and without any (`BatchVecEnv`),
    where the number of torch threads is the same. A worker that dies or hangs is replaced; the new one takes its shards
    up where they stood before the call and the call is made again, so no transition is lost and none counts twice.

    Args:
        setup: what episodes are made from; `setup.shards` is the most workers that can be busy.
        host: what `load_host` takes (each worker loads it), or an opened model (sent to each).
        settings: where and how workers run.
    Raises:
        ValueError: more workers than shards.
        RuntimeError: the cluster is too small; later, a worker was lost too often.

    Attributes:
        crew: the actors; `crew.restarts` counts replacements by worker.
    """

    def __init__(self, setup: Setup, host: Host | str | Path, settings: RaySettings | None = None) -> None:
        settings = settings or RaySettings()
        if settings.workers > setup.shards:
            raise ValueError(f"{settings.workers} workers for {setup.shards} shards: some would be idle")
        self._states: list[dict[str, Any] | None] = [None] * setup.shards
        self._dealt = [list(range(w, setup.shards, settings.workers)) for w in range(settings.workers)]
        self._crew_arguments = (setup, host, settings.threads)
        self._start(setup)
        self.crew = Crew(ShardWorker, self._arguments, settings)

    def _arguments(self, worker: int) -> tuple:
        setup, host, threads = self._crew_arguments
        if not isinstance(host, str | Path) and not isinstance(host, ray.ObjectRef):
            host = ray.put(host)
            self._crew_arguments = (setup, host, threads)
        shards = self._dealt[worker]
        return setup, host, threads, shards, [self._states[index] for index in shards]

    def _every(self, method: str, arguments: Sequence[tuple] | None = None) -> list[Any]:
        """One call of each shard's method, results in order; calls of a lost worker are made again."""
        arguments = list(arguments or [()] * self.setup.shards)
        workers = self.crew.settings.workers
        refs = [self.crew.call(i % workers, "call", i, method, each) for i, each in enumerate(arguments)]
        results: list[Any] = [None] * self.setup.shards
        for index in range(self.setup.shards):
            while True:
                try:
                    results[index], state = self.crew.fetch(refs[index])
                    break
                except WorkerLost as why:
                    self.crew.revive(index % workers, why)
                    for again in self._dealt[index % workers]:
                        if again >= index:
                            refs[again] = self.crew.call(index % workers, "call", again, method, arguments[again])
            self._states[index] = state
        return results

    def close(self) -> None:
        """Ends the workers; Ray itself stays."""
        self.crew.close()

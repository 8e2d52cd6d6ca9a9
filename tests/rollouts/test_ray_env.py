"""Ray takes seconds to start: one session for the whole file."""

import os
import time

import numpy as np
import pytest
import torch

ray = pytest.importorskip("ray")

from foveate.envs.episode import Terms  # noqa: E402
from foveate.envs.inputs import ListSource  # noqa: E402
from foveate.plans import BLIND, UNCOMPRESSED  # noqa: E402
from foveate.rollouts.ray_env import RayVecEnv, ShardWorker  # noqa: E402
from foveate.rollouts.ray_pool import Crew, RaySettings, WorkerLost, map_on_hosts  # noqa: E402
from foveate.rollouts.replay import fill  # noqa: E402
from foveate.rollouts.shard import Setup  # noqa: E402
from foveate.rollouts.vec import BatchVecEnv  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def session():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def setup(inputs, portfolio):
    return Setup(portfolio, ListSource(inputs), Terms(budget=(0.4, 1.0)), groups=4, k=2, shards=2, seed=5)


def settings(workers, **more):
    return RaySettings(workers, num_cpus=0.5, threads=torch.get_num_threads(), **more)


def play(env, steps, between=lambda step: None):
    rng, observation, trail = np.random.default_rng(0), env.reset(), []
    for step in range(steps):
        between(step)
        actions = np.array([rng.permutation(np.argwhere(mask))[0] for mask in observation["mask"]])
        observation, reward, done, infos = env.step(actions)
        told = [{k: v for k, v in info.items() if k != "terminal_observation"} for info in infos]
        trail.append((observation["vector"], observation["mask"], reward, done, told))
    return trail


def assert_equal(one, two):
    assert len(one) == len(two)
    for mine, theirs in zip(one, two, strict=True):
        for a, b in zip(mine[:4], theirs[:4], strict=True):
            assert np.array_equal(a, b)
        assert mine[4] == theirs[4]


@pytest.fixture(scope="module")
def expected(setup, host):
    trail = play(BatchVecEnv(setup, host), 6)
    assert sum(done.sum() for *_, done, _ in trail) > 8
    return trail


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_trajectories_bit_for_bit(setup, host, expected, workers):
    env = RayVecEnv(setup, host, settings(workers))
    try:
        assert_equal(play(env, 6), expected)
        assert env.crew.restarts == [0] * workers
        env.reset()
        actions = np.zeros((8, 2), int)
        actions[5] = [0, 2]
        with pytest.raises(ValueError, match=r"environment 5: input: action \(0, 2\) is not on offer"):
            env.step(actions)
    finally:
        env.close()


def test_a_killed_worker_is_replaced_and_no_transition_is_lost_or_doubled(setup, host, expected):
    env = RayVecEnv(setup, host, settings(2))
    try:
        assert_equal(play(env, 6, lambda step: step == 3 and ray.kill(env.crew.actors[1])), expected)
        assert env.crew.restarts == [0, 1]
    finally:
        env.close()


class Mortal(ShardWorker):
    """Dies in the middle of its third step, once for each file that is there."""

    def call(self, index, method, arguments):
        self.steps = getattr(self, "steps", 0) + (method == "step")
        if self.steps == 3 and os.path.exists(os.environ["FOVEATE_TEST_MORTAL"]):
            os.remove(os.environ["FOVEATE_TEST_MORTAL"])
            os._exit(1)
        return super().call(index, method, arguments)


def test_a_worker_that_dies_within_a_step_has_its_step_run_again(setup, host, expected, tmp_path, monkeypatch):
    from foveate.rollouts import ray_env

    mark = tmp_path / "mortal"
    mark.write_text("")
    monkeypatch.setattr(ray_env, "ShardWorker", Mortal)
    options = {"runtime_env": {"env_vars": {"FOVEATE_TEST_MORTAL": str(mark)}}}
    env = RayVecEnv(setup, host, settings(1, options=options))
    try:
        assert_equal(play(env, 6), expected)
        assert env.crew.restarts == [1] and not mark.exists()
    finally:
        env.close()


class Sleeper:
    def __init__(self, number):
        self.number = number

    def nap(self, seconds):
        time.sleep(seconds)
        return self.number


def test_a_hanging_worker_is_noticed_in_time_and_one_lost_too_often_ends_the_run():
    crew = Crew(Sleeper, lambda number: (number,), settings(1, timeout_s=20.0, max_restarts=1))
    try:
        assert crew.fetch(crew.call(0, "nap", 0)) == 0
        crew.settings = settings(1, timeout_s=0.5, max_restarts=1)
        with pytest.raises(WorkerLost, match="no answer within 0.5 s"):
            crew.fetch(crew.call(0, "nap", 60))
        crew.revive(0, WorkerLost("slow"))
        crew.settings = settings(1, timeout_s=60.0, max_restarts=1)
        assert crew.fetch(crew.call(0, "nap", 0)) == 0
        with pytest.raises(RuntimeError, match="worker 0 was lost 2 times, more than max_restarts = 1; last: slow"):
            crew.revive(0, WorkerLost("slow"))
    finally:
        crew.close()


class Teller:
    def __init__(self, number):
        self.number = number

    def variable(self, name):
        return os.environ.get(name)


@pytest.mark.parametrize(
    ("here", "options", "expected"),
    [
        (None, {}, "PASSIVE"),
        ("ACTIVE", {}, "ACTIVE"),
        (None, {"runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "ACTIVE", "FOVEATE_TEST": "x"}}}, "ACTIVE"),
    ],
)
def test_waiting_threads_of_workers_sleep_unless_the_user_said_otherwise(monkeypatch, here, options, expected):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if here is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", here)
    crew = Crew(Teller, lambda number: (number,), settings(1, options=options))
    try:
        assert crew.fetch(crew.call(0, "variable", "OMP_WAIT_POLICY")) == expected
        assert crew.fetch(crew.call(0, "variable", "FOVEATE_TEST")) == ("x" if options else None)
    finally:
        crew.close()


def test_a_cluster_that_is_too_small_is_refused_at_once(setup, host):
    with pytest.raises(RuntimeError, match="2 workers need 128 CPUs, the cluster has 2"):
        RayVecEnv(setup, host, RaySettings(2, num_cpus=64))
    with pytest.raises(RuntimeError, match="1 workers need 1 GPUs, the cluster has 0"):
        RayVecEnv(setup, host, RaySettings(1, num_gpus=1))
    with pytest.raises(ValueError, match="3 workers for 2 shards"):
        RayVecEnv(setup, host, RaySettings(3))
    with pytest.raises(ValueError, match="timeout_s = 0"):
        RaySettings(1, timeout_s=0)


def _value(host, argument):
    path, value = argument
    if path is not None and path.exists():
        path.unlink()
        os._exit(1)
    return value


def test_a_job_on_a_lost_worker_is_run_again_and_results_come_in_order(host, tmp_path):
    mark = tmp_path / "mark"
    mark.write_text("")
    jobs = [(i, (mark if i == 2 else None, 10 * i)) for i in range(5)]
    assert list(map_on_hosts(host, _value, jobs, settings(1))) == [(i, 10 * i) for i in range(5)]
    assert not mark.exists()


def test_a_table_filled_by_workers_is_the_one_filled_here(host, inputs, tmp_path):
    plans = [UNCOMPRESSED, BLIND]
    here = fill(host, inputs, plans, tmp_path / "here", shard=3, progress=False)
    there = fill(host, inputs, plans, tmp_path / "there", shard=3, progress=False, workers=2)
    assert there.same_as(here)

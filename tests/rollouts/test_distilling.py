"""Several processes teach one network: as one process would, and whatever happens to a worker."""

from functools import partial

import pytest
import torch

ray = pytest.importorskip("ray")

from foveate.models import load_host  # noqa: E402
from foveate.models.distilling.lessons import TaskLessons  # noqa: E402
from foveate.models.distilling.recipe import Run  # noqa: E402
from foveate.models.distilling.settings import Settings  # noqa: E402
from foveate.rollouts.distilling import Together  # noqa: E402
from foveate.rollouts.ray_pool import RaySettings  # noqa: E402

LOAD, LESSONS = partial(load_host, "reference"), TaskLessons(["scenes"])
SETTINGS = Settings(steps_a=2, steps_b=1, batch=4, held_out=1)


@pytest.fixture(scope="module", autouse=True)
def session():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def together(workers):
    settings = RaySettings(workers, num_cpus=0.5, threads=torch.get_num_threads())
    return Together(LOAD, "ldpv2", LESSONS, SETTINGS, settings)


def test_two_workers_give_the_mean_of_the_gradients_of_their_shares(tmp_path):
    whole, alone, both = (Run(LOAD(), "ldpv2", LESSONS, SETTINGS, tmp_path / str(i)).pupil for i in range(3))
    crew = together(2)
    try:
        losses, keep = crew.learn(both, "features", 1)
    finally:
        crew.close()
    shares = [alone.learn("features", 1, share, 2) for share in range(2)]  # gradients add up
    assert keep == shares[0][1] == whole.learn("features", 1)[1]
    assert losses["loss"] == pytest.approx((shares[0][0]["loss"] + shares[1][0]["loss"]) / 2, rel=1e-5)
    gradients = [torch.cat([p.grad.flatten() for p in each.network.parameters()]) for each in (whole, alone, both)]
    assert torch.allclose(gradients[1] / 2, gradients[2], rtol=1e-3, atol=1e-6) and gradients[2].abs().max() > 1e-3
    assert torch.cosine_similarity(gradients[0], gradients[2], dim=0) > 0.98


def test_a_worker_that_dies_is_replaced_and_nothing_changes(tmp_path):
    def weights(folder, kills):
        crew = together(2)

        def kill(progress):
            if (progress.part, progress.step) in kills:
                ray.kill(crew.crew.actors[1], no_restart=True)

        try:
            run = Run(LOAD(), "ldpv2", LESSONS, SETTINGS, folder, learn=crew.learn)
            run.train([kill])
            return run.network.state_dict(), sum(crew.crew.restarts)
        finally:
            crew.close()

    (expected, _), (got, lost) = weights(tmp_path / "whole", ()), weights(tmp_path / "killed", [("features", 1)])
    assert lost == 1 and all(torch.equal(expected[name], got[name]) for name in expected)


def test_more_workers_than_rows_are_refused():
    with pytest.raises(ValueError, match="workers: 5 cannot share 4 rows of a step"):
        Together(LOAD, "ldpv2", LESSONS, SETTINGS, RaySettings(5))

import numpy as np
import pytest

from foveate.envs.inputs import ListSource, TaskSource, input_of, inputs_of
from foveate.tasks.registry import regime_sample

pytestmark = pytest.mark.fast


def test_each_turn_of_a_sample_is_an_input():
    sample = regime_sample("counting", "test", 3)
    found = list(inputs_of([sample]))
    assert [each.id for each in found] == [f"{sample.id}#{i}" for i in range(len(sample.turns))]
    assert found[-1].question == sample.turns[-1].question and found[0].answers == tuple(sample.turns[0].answers)
    assert found[0].template == sample.turns[0].template and found[0].family == sample.family
    assert len(list(inputs_of([sample, sample], turns=1))) == 2
    with pytest.raises(ValueError, match=r"turn 99 is outside 0\.\."):
        input_of(sample, 99)


def test_a_task_source_draws_the_same_for_equal_generators_and_reaches_every_regime():
    source = TaskSource(["scenes"], "test", per_regime=50)
    draws = [[source.draw(np.random.default_rng(seed)).id for seed in range(20)] for _ in range(2)]
    assert draws[0] == draws[1]
    rng = np.random.default_rng(0)
    assert {source.draw(rng).regime for _ in range(40)} == set(source.regimes)
    assert source[1].regime == source.regimes[1] and source[1].split == "test"


def test_sources_without_anything_to_draw_are_refused():
    with pytest.raises(ValueError, match="inputs is empty"):
        ListSource([])
    with pytest.raises(ValueError, match="needs at least one of each"):
        TaskSource([])
    with pytest.raises(ValueError, match="task 'scene' is unknown"):
        TaskSource(["scene"])
    with pytest.raises(ValueError, match="split 'tset' is unknown"):
        TaskSource(["scenes"], "tset")

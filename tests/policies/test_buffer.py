import numpy as np
import pytest
import torch
from gymnasium import spaces

from foveate.controller.observation import HEAD, log_lambda
from foveate.policies.buffer import GroupBuffer, RunningScale, baseline

pytestmark = pytest.mark.fast

D = len(HEAD) + 1


def buffer(steps=3, envs=2, longest=1, **options):
    box = spaces.Box(-np.inf, np.inf, (D,), np.float32)
    observation = spaces.Dict({"vector": box, "mask": spaces.MultiBinary((2, 2))})
    return GroupBuffer(steps, observation, spaces.MultiDiscrete([2, 2]), n_envs=envs, longest=longest, **options)


def add(some, terms, dones, groups=None, values=0.0, lam=1.0, mark=None):
    """One step; `mark` tells the states of a group apart."""
    n = some.n_envs
    vector = np.zeros((n, D), np.float32)
    vector[:, HEAD.index("log_lambda")] = log_lambda(lam)
    vector[:, -1] = 0.0 if mark is None else mark
    obs = {"vector": vector, "mask": np.ones((n, 2, 2), np.int8)}
    values = torch.as_tensor(np.broadcast_to(np.asarray(values, np.float32), (n, 2)).copy())
    groups = np.zeros(n, np.int64) if groups is None else np.array(groups)
    some.add(obs, torch.zeros(n, 2), values, torch.zeros(n), np.array(terms, float), groups, np.array(dones, bool))


def test_the_baseline_leaves_the_own_rollout_out_and_counts_the_critic_as_one():
    state = np.array([0, 0, 0, 1])
    returns = np.array([[1.0, 0.2], [0.0, 0.4], [1.0, 0.9], [1.0, 0.5]])
    values = np.array([[0.5, 0.3]] * 4)
    expected = [
        [(0 + 1 + 0.5) / 3, (0.4 + 0.9 + 0.3) / 3],
        [(1 + 1 + 0.5) / 3, (0.2 + 0.9 + 0.3) / 3],
        [(1 + 0 + 0.5) / 3, (0.2 + 0.4 + 0.3) / 3],
        [0.5, 0.3],  # nobody else: the critic alone
    ]
    np.testing.assert_allclose(baseline(state, returns, values, 1.0), expected)
    np.testing.assert_allclose(baseline(state, returns, values, 0.0)[:, 0], [0.5, 1.0, 0.5, 0.5])


def test_the_advantage_by_hand():
    some = buffer(steps=1, envs=2, critic_weight=0.0)
    add(some, [[1.0, 0.8], [0.0, 0.2]], [True, True], lam=0.5)
    some.finish()
    # against the other: A_q = 1, A_c = 0.6: (1 - 0.5 * 0.6) / 1.5 = 0.4667, and its negative; their rms is 0.4667
    assert some.scale.square == pytest.approx(0.4666667**2, rel=1e-5)
    assert some.advantages.tolist() == pytest.approx([1.0, -1.0], abs=1e-5)


def test_the_scale_is_one_running_number_and_not_the_groups_own():
    scale = RunningScale(fade=0.5)
    assert scale.update(np.array([3.0, -3.0])) == pytest.approx(3.0)
    assert scale.update(np.array([1.0])) == pytest.approx(((0.5 * 9 + 1) / 1.5) ** 0.5)
    # a group in which all are right and costs hardly differ keeps tiny advantages beside one with a wrong answer
    some = buffer(steps=1, envs=4, critic_weight=0.0)
    add(some, [[1.0, 0.50], [1.0, 0.51], [1.0, 0.5], [0.0, 0.5]], [True] * 4, groups=[0, 0, 1, 1])
    some.finish()
    assert abs(some.advantages[0]) < 0.02 < 1 < abs(some.advantages[2])


def test_states_of_one_group_are_told_apart_by_what_is_seen():
    some = buffer(steps=1, envs=3, critic_weight=0.0)
    add(some, [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [True] * 3, values=(0.25, 0.0), mark=[0, 0, 1])
    some.finish()
    raw = some.advantages * np.sqrt(some.scale.square / some.scale.weight)
    assert raw.tolist() == pytest.approx([0.5, -0.5, -0.125])


def test_what_is_still_to_come_and_its_group_reach_back_to_the_episodes_first_step():
    some = buffer(steps=3, envs=2, longest=2, critic_weight=0.0)
    add(some, [[0.0, 0.1], [0.0, 0.1]], [False, False], groups=[-1, -1])
    add(some, [[1.0, 0.3], [0.0, 0.4]], [True, True], groups=[7, 7])
    add(some, [[1.0, 0.9], [1.0, 0.9]], [True, True], groups=[8, 8])
    log = some.finish()
    np.testing.assert_allclose(some.returns, [[1, 0.4], [0, 0.5], [1, 0.3], [0, 0.4]], atol=1e-6)
    assert some.rows.tolist() == [0, 1, 2, 3]  # the third step began too late to be sure to end
    assert log["rollout/quality"] == 0.5
    assert log["rollout/cost_share"] == pytest.approx(0.45)
    assert log["rollout/stages_per_episode"] == 2.0
    assert log["rollout/alone_share"] == 0.0


def test_an_episode_that_began_late_is_left_out_even_where_it_ended():
    some = buffer(steps=3, envs=1, longest=3)
    add(some, [[1.0, 0.5]], [True])
    add(some, [[1.0, 0.5]], [True])
    add(some, [[1.0, 0.5]], [False])
    some.finish()
    assert some.rows.tolist() == [0]


def test_minibatches_hold_every_usable_step_once():
    some = buffer(steps=4, envs=3, longest=1)
    for t in range(4):
        add(some, [[t, 0.0]] * 3, [True] * 3, groups=[t] * 3)
    some.finish()
    torch.manual_seed(0)
    batches = list(some.get(5))
    assert [len(b.actions) for b in batches] == [5, 5, 2]
    assert sorted(torch.cat([b.returns[:, 0] for b in batches]).tolist()) == sorted([0.0, 1, 2, 3] * 3)
    assert set(batches[0].observations) == {"vector", "mask"}


def test_bad_numbers_and_settings_are_refused():
    some = buffer(steps=1)
    add(some, [[np.nan, 0.0], [0.0, 0.0]], [True, True])
    with pytest.raises(ValueError, match="not a number"):
        some.finish()
    with pytest.raises(ValueError, match="gamma"):
        buffer(gamma=0.99)
    with pytest.raises(ValueError, match="n_steps = 3 is below the longest episode, 6"):
        buffer(longest=6)
    some = buffer(steps=2, longest=1)
    for _ in range(2):
        add(some, [[0.0, 0.0]] * 2, [False, False])
    with pytest.raises(ValueError, match="more than 1 steps"):
        some.finish()

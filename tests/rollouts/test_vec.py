import json

import numpy as np
import pytest

from foveate.envs.compression import CompressionEnv
from foveate.envs.episode import Terms
from foveate.envs.inputs import ListSource
from foveate.rollouts.shard import Setup
from foveate.rollouts.vec import BatchVecEnv

NEVER = {"terminal_observation", "episode", "TimeLimit.truncated", "group", "number"}


@pytest.fixture
def setup(inputs, portfolio):
    def build(**settings):
        settings = {"groups": 4, "k": 2, "shards": 2, "seed": 5, **settings}
        return Setup(portfolio, ListSource(inputs), **settings)

    return build


def choose(observation, rng):
    """A random legal action for each environment."""
    return np.array([rng.permutation(np.argwhere(mask))[0] for mask in observation["mask"]])


def play(env, steps, seed=0):
    rng, observation, trail = np.random.default_rng(seed), env.reset(), []
    for _ in range(steps):
        actions = choose(observation, rng)
        observation, reward, done, infos = env.step(actions)
        trail.append((observation, reward, done, infos, actions))
    return trail


def test_each_episode_is_the_one_that_the_single_environment_gives(setup, host, inputs, portfolio):
    env, single = BatchVecEnv(setup(), host), CompressionEnv(host, portfolio, inputs)
    rng, observation = np.random.default_rng(0), env.reset()
    episodes = [[] for _ in range(8)]
    compared = 0
    for _ in range(8):
        actions = choose(observation, rng)
        before = observation
        observation, reward, done, infos = env.step(actions)
        for i in range(8):
            episodes[i].append((before["vector"][i], before["mask"][i], actions[i], reward[i]))
            if done[i]:
                compare(single, episodes[i], infos[i], inputs)
                episodes[i], compared = [], compared + 1
    assert compared > 12


def compare(single, steps, info, inputs):
    given = next(each for each in inputs if each.id == info["input"])
    options = {"input": given, "lam": info["lam"], "budget": info["budget"]}
    observation, _ = single.reset(options=options)
    for vector, mask, action, reward in steps:
        assert np.allclose(observation["vector"], vector, atol=2e-5) and np.array_equal(observation["mask"], mask)
        observation, mine, done, _, about = single.step(action)
        assert mine == pytest.approx(float(reward), abs=1e-5)
    assert done and np.allclose(observation["vector"], info["terminal_observation"]["vector"], atol=2e-5)
    assert {k: v for k, v in about.items() if k != "prob"} == {
        k: v for k, v in info.items() if k not in NEVER | {"prob"}
    }
    assert about["prob"] == pytest.approx(info["prob"], rel=1e-4)
    assert info["episode"]["l"] == len(steps)
    assert info["episode"]["r"] == pytest.approx(info["quality"] - info["lam"] * info["cost"], abs=1e-9)


def test_rollouts_of_a_group_share_input_lambda_and_budget(setup, host):
    shared = {}
    for *_, infos, _ in play(BatchVecEnv(setup(), host), 10):
        for i, info in enumerate(infos):
            if info:
                assert info["group"] == info["number"] * 4 + i // 2
                shared.setdefault(info["group"], set()).add((info["input"], info["lam"], info["budget"]))
    assert len(shared) > 4 and all(len(each) == 1 for each in shared.values())


def test_equal_seeds_give_equal_trajectories_bit_for_bit(setup, host):
    other = BatchVecEnv(setup(seed=6), host)
    unlike = play(other, 4)
    other.seed(5)
    for one, two in zip(play(BatchVecEnv(setup(), host), 6), play(other, 6), strict=True):
        assert np.array_equal(one[0]["vector"], two[0]["vector"]) and np.array_equal(one[1], two[1])
    assert not np.array_equal(unlike[0][0]["vector"], play(BatchVecEnv(setup(), host), 1)[0][0]["vector"])


def test_a_run_goes_on_from_its_state_bit_for_bit(setup, host):
    env = BatchVecEnv(setup(), host)
    observation = play(env, 3)[-1][0]
    state = json.loads(json.dumps(env.state_dict()))
    fresh, rng = BatchVecEnv(setup(seed=0), host), np.random.default_rng(1)
    assert np.array_equal(fresh.load_state_dict(state)["vector"], observation["vector"])
    for _ in range(4):
        actions = choose(observation, rng)
        mine, theirs = env.step(actions), fresh.step(actions)
        assert np.array_equal(mine[0]["vector"], theirs[0]["vector"]) and np.array_equal(mine[1], theirs[1])
        observation = mine[0]
    with pytest.raises(ValueError, match="state of 1 shards, this one has 2"):
        env.load_state_dict({"shards": state["shards"][:1]})


def test_an_illegal_action_is_refused_with_its_reason_before_any_shard_has_acted(setup, host):
    env = BatchVecEnv(setup(terms=Terms(budget_share=0.0)), host)
    observation = env.reset()
    actions = np.zeros((8, 2), int)
    actions[6] = [1, 0]
    with pytest.raises(ValueError, match=r"environment 6: input: action \(1, 0\) is not on offer"):
        env.step(actions)
    assert [slot.episode.at for shard in env.shards for slot in shard.slots] == [0] * 8
    with pytest.raises(ValueError, match=r"need whole numbers \(8, 2\), got shape \(3, 2\)"):
        env.step(actions[:3])
    assert observation["mask"][6, 1, 0] == 0


def test_one_shot_and_label_free_episodes_end_like_single_ones(setup, host, inputs, portfolio):
    terms = Terms(one_shot=True, quality="label_free", budget_share=0.0)
    single = CompressionEnv(host, portfolio, inputs, one_shot=True, quality="label_free")
    env = BatchVecEnv(setup(terms=terms), host)
    ended = 0
    for observation, _, _, infos, _ in play(env, 6):
        assert not observation["vector"][:, env.shards[0].layout.slices["block1"].start :].any()
        for info in filter(None, infos):
            single.reset(
                options={"input": next(e for e in inputs if e.id == info["input"]), "lam": 1.0, "budget": None}
            )
            single.episode.plan = plan = _plan(info["plan"])
            single.episode.at = 6
            single._reach_stop()
            quality, _ = single._verdict()
            assert quality == pytest.approx(info["quality"], rel=1e-4), plan
            ended += 1
    assert ended > 4


def _plan(label):
    from foveate.plans import BLIND, UNCOMPRESSED, Plan

    if label in ("none", "blind"):
        return UNCOMPRESSED if label == "none" else BLIND
    parts = [part.replace("@", ":").split(":") for part in label.split(" + ")]
    return Plan.of(**{stage: (method, float(keep)) for stage, method, keep in parts})


def test_the_graded_share_can_be_lowered_later(setup, host):
    env = BatchVecEnv(setup(terms=Terms(quality="graded", b=1.0)), host)
    env.env_method("set_b", 0.5)
    infos = [info for *_, infos, _ in play(env, 4) for info in infos if info]
    assert infos and all(i["quality"] == pytest.approx(0.5 * i["correct"] + 0.5 * i["prob"]) for i in infos)


def test_groups_that_shards_do_not_divide_are_refused(setup):
    with pytest.raises(ValueError, match="groups = 5, k = 2, shards = 2"):
        setup(groups=5)
